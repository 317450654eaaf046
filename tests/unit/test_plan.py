"""`pruneonce plan`: every profile has a page, and what does not fit is one clear message."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from pipeline import cli
from pipeline.params import profiles
from pipeline.params.document import load
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.params.sources import ExpectedRows
from pipeline.plan import costs, inventory, planned
from pipeline.plan import page as plan_page
from pruneonce import step_costs
from pruneonce.errors import ConfigError, DataError, ModelError, PruneOnceError
from pruneonce.sparsity import masks
from study.battery import tables
from tests.conftest import commit

ROOT = Path(__file__).parents[2]
HERE = costs.Rate(gpus=1, tflops=None, tokens=None)
MINILM = """{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536,
"num_attention_heads": 12, "vocab_size": 30522, "max_position_embeddings": 512}"""
# Millions of prunable weights. BERT-Base, BERT-Large, DistilBERT: the paper's; MiniLM-L6: 6 (4 x 384^2 + 2 x 384 x 1536).
PRUNABLE = {
    "default": "10.62 M",
    "battery": "10.62 M",
    "battery-thorough": "10.62 M",
    "bert-base-85": "84.93 M",
    "bert-base-90": "84.93 M",
    "bert-base-90-obert": "84.93 M",
    "bert-large-90": "301.99 M",
    "distilbert-85": "42.47 M",
    "distilbert-90": "42.47 M",
    "thorough": "10.62 M",
    "tiny": "36.9 k",
}


# Tables of the battery: one row each.
MADE = {
    "others": [{"text": "a b", "other": "c d", "label": "yes"}],
    "alike": [{"text": "a b", "other": "c d", "label": 2.5}],
    "tale": [{"text": "a b", "label": "yes"}],
    "mentions": [{"text": "a b", "label": "O B-TAG"}],
    "speaker": [{"question": "who?", "context": "a b", "label": {"text": ["a"], "answer_start": [0]}}],
}


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """A repository with this project's parameters and inputs."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("dvc.yaml", "params.yaml", "profiles", "tests/tiny"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    return commit(folder, "params.yaml")


@pytest.fixture
def project(committed, tmp_path, monkeypatch):
    """A copy of it in which MiniLM-L6's configuration was fetched."""
    shutil.copytree(committed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/raw/minilm-l6").mkdir(parents=True)
    (tmp_path / "data/raw/minilm-l6/config.json").write_text(MINILM)
    source = read_yaml(Path("params.yaml"))["fetch"]["minilm-l6"]
    entry = {"cmd": "true", "params": {"params.yaml": {"fetch.minilm-l6": source}}}
    with Path("dvc.lock").open("w") as file:
        YAML(typ="safe").dump({"schema": "2.0 M", "stages": {"fetch@minilm-l6": entry}}, file)
    return tmp_path


@pytest.fixture
def tiny(project):
    """Makes params.yaml the tiny profile with a change."""

    def write(change=lambda document: None):
        document = read_yaml(Path("profiles/tiny.yaml"))
        change(document)
        with Path("params.yaml").open("w") as file:
            YAML(typ="safe").dump(document, file)

    write()
    return write


def page(profile=None, rate=HERE):
    return "\n".join(plan_page.lines(profile, rate))


def test_there_is_a_count_for_every_profile(project):
    assert sorted(profiles.names()) == sorted(PRUNABLE)
    assert len(PRUNABLE) == 11


@pytest.mark.parametrize("profile", sorted(PRUNABLE))
def test_every_profile_has_a_page_with_its_prunable_weights(project, profile):
    if profile.startswith("battery"):
        local = parse_yaml(profiles.read(profile), profile)["fetch_local"]
        tables.write({name: MADE.get(name, MADE["others"]) for name in local}, tables.FOLDER)
    found = page(profile, costs.Rate(gpus=8, tflops=100.0, tokens=None))
    assert f"prunable: {PRUNABLE[profile]} in the layers" in found
    assert ("in the pooler" in found) == profile.startswith("bert-")
    assert max(map(len, found.splitlines())) <= 105
    tasks = list(parse_yaml(profiles.read(profile), profile)["tasks"])
    assert f"Tasks: {' '.join(tasks)}\n" in found
    model = parse_yaml(profiles.read(profile), profile)["common"]["model"]
    assert re.search(rf"^  {model} +\(model\) ", found, re.MULTILINE)
    assert re.search(r"^  finetune +for each task +prepare_task sparsify teach_task$", found, re.MULTILINE)
    packages = ("default", "battery", "battery-thorough", "thorough")
    fetched = profile not in packages  # of these there are no rows before they are fetched
    counted = len(local) if profile.startswith("battery") else len(tasks) * fetched  # rows of files of this machine are
    assert len(re.findall(r"^  (?:teach_task|finetune|quantize)@", found, re.MULTILINE)) == 3 * counted
    assert found.count("its rows are known once they are fetched") == len(tasks) * (not fetched) - counted * (not fetched)


def test_the_numbers_of_the_tiny_profile_by_hand(tiny):
    """60 and 40 steps of 8 rows of 32 tokens; 288 rows: 36 steps an epoch, of 8 rows of 24 tokens at most."""
    work = {w.name: w for w in costs.pre_training(load(), model(), 1)}
    assert {name: (w.steps, w.tokens, w.rows) for name, w in work.items()} == {
        "prepare_teacher": (60, 60 * 8 * 32, 8),
        "sparsify": (40, 40 * 8 * 32, 8),
    }
    work = {w.name: w for w in costs.task_training(load(), model(), 2, {"topic": 288, "unknown": None})}
    assert {name: (w.steps, w.tokens, w.rows, w.uneven) for name, w in work.items()} == {
        "teach_task@topic": (180, 180 * 8 * 24, 4, False),
        "finetune@topic": (180, 180 * 8 * 24, 4, False),
        "quantize@topic": (72, 72 * 8 * 24, 4, False),
    }
    assert work["finetune@topic"].flops == pytest.approx(work["teach_task@topic"].flops * 4 / 3), "and a teacher"
    assert costs.Rate(2, None, 1000.0).seconds(work["quantize@topic"]) == 72 * 8 * 24 / 2000
    assert costs.Rate(1, 1e-3, None).seconds(work["quantize@topic"]) == work["quantize@topic"].flops / 1e9
    assert HERE.seconds(work["quantize@topic"]) is None


def model():
    built = step_costs.build(inventory.source("tiny-bert", load()).facts())
    shape = step_costs.shape(built, masks.prunable(built, load().sparsify.prunable))
    return costs.Model(shape, partial(step_costs.forward_flops, built))


def test_rows_are_counted_where_the_files_are(tiny):
    found = page()
    lines = len(Path("tests/tiny/text/topic-train.tsv").read_text().splitlines()) - 1
    assert re.search(rf"^  topic +test train +[\d,]+ {lines:,} .* counted$", found, re.MULTILINE)
    assert "warning" not in found


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda d: d["prepare_corpus"].update(block_tokens=65),
            ConfigError,
            "expected prepare_corpus.block_tokens of at most 64, the positions of tiny-bert, found 65",
        ),
        (
            lambda d: d["evaluate"].update(latency_tokens=65),
            ConfigError,
            "expected evaluate.latency_tokens of at most 64, .*, found 65",
        ),
        (
            lambda d: d["tasks"]["topic"]["finetune"].update(max_tokens=128),
            ConfigError,
            "expected max_tokens of finetune for task topic of at most 64, .*, found 128",
        ),
        (
            lambda d: d["tasks"]["topic"]["prepare_task"].update(text="body"),
            DataError,
            r"expected column 'body' in .*topic-train\.tsv, found columns \['text', 'label'\]",
        ),
        (
            lambda d: d["prepare_corpus"]["documents"][0].update(split="dev"),
            DataError,
            r"expected a split 'dev' in source 'corpus', found \['train'\]",
        ),
        (
            lambda d: d["fetch_local"]["topic"].update(members={"test.tsv": "topic-test.tsv"}),
            DataError,
            r"expected train rows for task 'topic' in source 'topic', found splits \['test'\]",
        ),
        (
            lambda d: d["fetch_local"]["topic"].update(path="tests/tiny/no-such"),
            DataError,
            "expected a file or folder at tests/tiny/no-such/topic-test.tsv, found none",
        ),
        (
            lambda d: d["prepare_task"].update(more_tests=["hard"]),
            DataError,
            r"expected test-hard rows for task 'topic' in source 'topic', found splits \['test', 'train'\]",
        ),
        (
            lambda d: d["fetch_local"]["tiny-bert"].update(members={"model": "."}),
            DataError,
            r"expected config\.json in source 'tiny-bert', found \['model/config\.json', ",
        ),
        (lambda d: d["sparsify"].update(micro_batches=3), ConfigError, "must be a multiple of micro_batches 3"),
        (lambda d: d["sparsify"].update(prunable="^no-such"), ModelError, "whose name matches '.no-such', found none"),
        (
            lambda d: (
                d["prepare_corpus"].update(next_sentence=True),
                d["fetch_local"]["tiny-bert"].update(path="roberta.json", members={"config.json": "."}),
            ),
            ModelError,
            r"found RobertaForMaskedLM without next_sentence_label: it has no next-sentence head",
        ),
        (lambda d: d["common"].update(model="topic"), DataError, "expected config.json in source 'topic', found"),
    ],
)
def test_what_does_not_fit_is_one_clear_message(tiny, change, error, message):
    facts = {"model_type": "roberta", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    Path("roberta.json").write_text(json.dumps(facts))
    tiny(change)
    with pytest.raises(error, match=message):
        page()


SIZES = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", r"expected a model's configuration in tests/tiny/model/config\.json, found no JSON: Expecting value"),
        ("{", r"config\.json, found no JSON: Expecting property name"),
        ("[" * 100_000, r"config\.json, found no JSON: maximum recursion depth"),
        ("[1]", r"config\.json, found a list\. Get the file again"),
        ("null", r"config\.json, found a NoneType"),
        (b"\xff", r"config\.json, found no JSON: 'utf-8' codec"),
        ({**SIZES, "model_type": "no-such"}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        ({"hidden_size": 8}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        ({**SIZES, "model_type": ["bert"]}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        ({**SIZES, "model_type": "t5"}, "config.json of source 'tiny-bert': expected"),
        (
            {**SIZES, "hidden_size": -8},
            "expected hidden_size of a model from 0 to 10,000,000, found -8. Correct its config.json",
        ),
        ({**SIZES, "hidden_size": 10**12}, "expected hidden_size of a model from 0 to 10,000,000, found 1000000000000"),
        ({**SIZES, "vocab_size": 10**30}, "expected vocab_size of a model from 0 to 10,000,000, found 1000000000000"),
        ({**SIZES, "num_hidden_layers": 10**9}, "expected num_hidden_layers of a model from 0 to 1,000, found 1000000000"),
        ({**SIZES, "num_labels": 10**9}, "expected num_labels of a model from 0 to 1,000, found 1000000000"),
        ({**SIZES, "hidden_size": "8"}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        ({**SIZES, "hidden_size": None}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        (
            {**SIZES, "num_attention_heads": 0},
            "config.json of source 'tiny-bert': expected the configuration of a masked LM",
        ),
        (
            {**SIZES, "num_attention_heads": 3},
            "config.json of source 'tiny-bert': expected the configuration of a masked LM",
        ),
        ({**SIZES, "num_hidden_layers": 0}, "config.json of source 'tiny-bert': expected"),
        ({**SIZES, "hidden_act": "no-such"}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
        ({**SIZES, "pad_token_id": 99}, "config.json of source 'tiny-bert': expected the configuration of a masked LM"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, dict) else None,
)
def test_a_configuration_that_is_none_is_one_error_that_names_it(tiny, config, message):
    path = Path("tests/tiny/model/config.json")
    path.write_bytes(
        config if isinstance(config, bytes) else (config if isinstance(config, str) else json.dumps(config)).encode()
    )
    with pytest.raises(ModelError, match=message) as raised:
        page()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("path", "why"), [("x" * 300, "File name too long"), ("loop", "found none|Too many levels")])
def test_a_local_path_that_the_disk_refuses_is_one_error(tiny, path, why):
    Path("loop").symlink_to("loop")
    tiny(lambda d: d["fetch_local"]["topic"].update(path=path))
    with pytest.raises(DataError, match=f"expected a file or folder at {path[:30]}.*({why})"):
        page()


def test_too_few_rows_for_a_batch_are_a_warning(tiny):
    lines = Path("tests/tiny/text/topic-train.tsv").read_text().splitlines()[:7]
    Path("tests/tiny/text/topic-train.tsv").write_text("\n".join(lines) + "\n")
    Path("tests/tiny/text/corpus.txt").write_text("one line\n")
    found = page()
    assert "warning: task topic: has 5 rows to train on, a batch takes 8" in found
    assert "warning: sparsify: the corpus has about 2 tokens, one device takes 256 at a time" in found


def test_a_task_without_a_row_left_to_train_on(tiny):
    Path("tests/tiny/text/topic-train.tsv").write_text("text\tlabel\n")
    with pytest.raises(DataError, match="expected train rows for task 'topic', found 0 rows in source 'topic'"):
        page()


def test_a_column_that_the_hub_is_not_expected_to_have(project):
    Path("profiles/wrong.yaml").write_text("extends: bert-base-85\ntasks:\n  mnli:\n    prepare_task: {pair: premise2}\n")
    with pytest.raises(DataError, match=r"expected column 'premise2' in source 'mnli', found .*'premise', 'hypothesis'"):
        page("wrong")


def test_a_package_that_was_not_fetched_for_this_profile_is_not_looked_into(project):
    """The folder is there; DVC recorded it for another version."""
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace("==0.1.0", "==0.0.9"))
    with pytest.raises(DataError, match=r"model 'minilm-l6', found none: .*dvc repro fetch@minilm-l6"):
        page("default")


def test_a_source_that_is_not_here_may_hold_any_split_and_the_page_says_what_was_not_checked(tiny):
    """A member named `.` is a folder of files that only the package knows."""

    def change(document, **members):
        del document["fetch_local"]["topic"]
        document["fetch"]["topic"] = {"package": "topics==1.0", "sha256": "0" * 64, "members": members}

    unchecked = "warning: source topic: not fetched yet; its splits, columns and rows were not checked"
    but_splits = unchecked.replace("splits, ", "")
    tiny(lambda d: change(d, **{".": "topics/data"}))
    found = page()
    assert unchecked in found
    assert re.search(r"^  topic +\? +not fetched yet$", found, re.MULTILINE)
    tiny(lambda d: change(d, **{"train.tsv": "topics/train.tsv"}))
    assert but_splits in page()
    tiny(lambda d: change(d, **{"data/train.tsv": "topics/train.tsv"}))
    with pytest.raises(DataError, match=r"expected train rows for task 'topic' in source 'topic', found splits \[\]"):
        page()


def test_files_that_no_task_reads_are_not_looked_into_and_a_corpus_column_stays_its_own(tiny):
    Path("tests/tiny/text/notes.txt").write_text("a line\n")
    Path("tests/tiny/text/raw.jsonl").write_text('{"body": "storm over the coast"}\n')

    def change(document):
        members = {
            "train.tsv": "topic-train.tsv",
            "test.tsv": "topic-test.tsv",
            "notes.txt": "notes.txt",
            "raw.jsonl": "raw.jsonl",
        }
        document["fetch_local"]["topic"]["members"] = members
        document["prepare_corpus"]["documents"] += [{"source": "topic", "split": "raw", "column": "body", "skip_rows": 0}]

    tiny(change)
    assert re.search(r"^  topic +test train raw ", page(), re.MULTILINE)


def test_a_single_file_under_its_own_name(tiny):
    tiny(lambda d: d["fetch_local"]["corpus"].update(path="tests/tiny/text/train.txt", members={".": "."}))
    Path("tests/tiny/text/corpus.txt").rename("tests/tiny/text/train.txt")
    assert re.search(r"^  corpus +train .* counted$", page(), re.MULTILINE)


def test_the_corpus_is_measured_before_compression_and_a_card_is_counted_once(tiny, tmp_path):
    text = "the same words again and again " * 200
    pq.write_table(pa.table({"text": [text, text[1:]], "other": ["x" * 9000, "y" * 9000]}), tmp_path / "train.parquet")
    (tmp_path / "plain.txt").write_text(text)
    here = inventory.Source("here", {f: tmp_path / f for f in ("train.parquet", "plain.txt")}, frozenset(), None)
    assert here.by_split().keys() == {"train", "plain"}
    assert inventory.text_bytes(here.by_split()["train"], "text") == pytest.approx(2 * len(text), rel=0.01)
    assert inventory.text_bytes(here.by_split()["plain"], "text") == len(text)

    card = ExpectedRows.model_construct(columns=["text"], rows={"train": 5, "more": 5}, bytes=1000)
    hub = inventory.Source("corpus", {}, frozenset(["train.parquet", "more.parquet"]), card)
    tiny(lambda d: d["prepare_corpus"]["documents"].append({**d["prepare_corpus"]["documents"][0], "split": "more"}))
    assert costs.corpus_bytes(load(), {"corpus": hub}) == 1000
    unknown = inventory.Source("corpus", {}, hub.names, None)
    assert costs.corpus_bytes(load(), {"corpus": unknown}) is None


def test_no_epochs_are_no_steps(tiny):
    tiny(lambda d: d["quantize"].update(epochs=0))
    work = {w.name: w.steps for w in costs.task_training(load(), model(), 1, {"topic": 288})}
    assert work == {"teach_task@topic": 180, "finetune@topic": 180, "quantize@topic": 0}


def test_an_embedding_is_taught_nothing_and_its_pairs_are_two_rows_each(tiny):
    """288 rows are 576 texts: 72 steps an epoch. The dense model does the task already."""
    tiny(lambda d: d["tasks"]["topic"]["prepare_task"].update(kind="embedding", metric="spearman", label=None, pair="b"))
    work = {w.name: w.steps for w in costs.task_training(load(), model(), 1, {"topic": 288})}
    assert work == {"teach_task@topic": 0, "finetune@topic": 360, "quantize@topic": 144}


def test_positions_are_those_that_tokens_can_take():
    """RoBERTa numbers them behind that of padding."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    model = step_costs.build({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1, **sizes})
    assert step_costs.shape(model, masks.prunable(model, None)).positions == 512


def test_flops_that_cannot_be_counted_are_one_line(tiny):
    assert "FLOPs: not known" not in page()
    sizes = {"emb_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64, "vocab_size": 99}
    Path("tests/tiny/model/config.json").write_text(json.dumps({"model_type": "xlm", **sizes}))
    tiny(lambda d: d["sparsify"].update(prunable=r"attentions"))
    found = page(rate=costs.Rate(gpus=1, tflops=1.0, tokens=None))
    assert found.count("\nFLOPs: not known. This model's code reads values of its input, and the plan has none.\n") == 1
    assert "?" not in found[found.index("stage that trains") :]


def test_outside_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for profile in (None, "default", "tiny"):
        with pytest.raises(ConfigError, match=r"expected the file params\.yaml, found none\. Run inside the repository"):
            page(profile)


def test_windows_of_questions_are_a_warning(project):
    assert page("bert-base-85").count("steps are counted by questions; a long context gives several rows") == 1


def test_what_works_but_looks_wrong_is_a_warning(tiny):
    def change(document):
        document["sparsify"]["steps"] = 100000
        document["finetune"]["batch_size"] = 12

    tiny(change)
    found = page(rate=costs.Rate(gpus=8, tflops=None, tokens=None))
    assert re.search(r"^warning: sparsify: reads the corpus \d{3,} times", found, re.MULTILINE)
    uneven = "batch_size is no multiple of micro_batches x GPUs: pieces differ in size"
    assert f"warning: finetune@topic: {uneven}" in found
    assert found.count("warning") == 2


def test_the_command(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pruneonce", "plan", "distilbert-90", "--tokens-per-second", "1e5", "--gpus", "4"])
    cli.main()
    said = capsys.readouterr().out
    assert "profiles/distilbert-90.yaml: DistilBERT, pruned once" in said
    assert "Hours: training alone; GPUs: 4, each 100,000 tokens/s" in said
    hours = 100_000 * 256 * 512 / (1e5 * 4 * 3600)
    assert re.search(rf"^  sparsify .* {hours:.2f}$", said, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["pruneonce", "plan", "no-such"])
    with pytest.raises(SystemExit, match="ConfigError: expected one of the profiles"):
        cli.main()
    monkeypatch.setattr(sys, "argv", ["pruneonce", "plan", "tiny", "--gpus", "0"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "expected a whole number from 1 to 1000000, found '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("profile", "lost", "said"),
    [("no-such", None, "expected one of the profiles"), ("default", "data/raw", "expected the configuration of model")],
)
def test_what_is_usually_wrong_is_said_before_torch_is_imported(project, profile, lost, said):
    if lost:
        shutil.rmtree(project / lost)
    ask = "import sys; from pipeline import cli; sys.argv = ['pruneonce', 'plan', sys.argv[1]]; import atexit; "
    ask += "atexit.register(lambda: print('torch' in sys.modules)); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", ask, profile], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert said in done.stderr


def test_the_same_for_a_program(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pruneonce", "plan", "--json", "--tokens-per-second", "1000"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["profile"], found["tasks"]) == (1, "params.yaml", ["topic"])
    assert (found["model"]["layers"], found["model"]["prunable"], found["sparsity"]) == (2, 36864, 0.85)
    assert {source["name"]: source["rows"] for source in found["sources"]}["topic"] == {"test": 60, "train": 160}
    work = found["training"][0]
    assert (work["stage"], work["steps"], work["tokens"], work["seconds"]) == ("prepare_teacher", 60, 15360, 15.36)
    assert work["memory_bytes"]["peak"] == max(work["memory_bytes"].values())
    assert found["warnings"] == []


@pytest.mark.parametrize(("number", "known"), [(None, None), (math.nan, None), (0.0, 0.0), (2.5, 2.5)])
def test_what_is_not_known_is_null(number, known):
    assert planned._known(number) == known


def test_a_page_ends_before_the_first_line_where_something_is_wrong(tiny):
    tiny(lambda d: d["prepare_corpus"].update(block_tokens=65))
    with pytest.raises(PruneOnceError):
        next(iter(plan_page.lines(None, HERE)))


def test_what_another_profile_left_under_the_name_of_a_source_is_not_it(project):
    """git brings back dvc.lock, and leaves what stands in data/raw."""
    given = read_yaml(Path("params.yaml"))["fetch"]["r8"]
    entry = {"cmd": "true", "params": {"params.yaml": {"fetch.r8": given}}}
    with Path("dvc.lock").open("w") as file:
        YAML(typ="safe").dump({"schema": "2.0", "stages": {"fetch@r8": entry}}, file)
    p = load()
    Path("data/raw/r8").mkdir(parents=True)
    for name in given["members"]:
        Path("data/raw/r8", name).write_text("Text,Category\n")
    found = inventory.source("r8", p)
    assert (found.known, sorted(found.files)) == ("counted", sorted(given["members"]))
    Path("data/raw/r8/other.csv").write_text("x\n")
    found = inventory.source("r8", p)
    assert (found.known, found.splits()) == ("not fetched yet", ["test", "train"])
