"""A project of `pruneonce init`: its params.yaml and dvc.yaml, the block of a task, questions about a guess."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from pipeline import cli
from pipeline.commands import add_task
from pipeline.params.document import load
from pipeline.params.profiles import dump
from pipeline.params.reading import parse_yaml
from pipeline.projects import asking, create, parameters, tasks, wiring
from pruneonce import projects
from pruneonce.errors import ConfigError, DataError, ModelError, PipelineError
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.sparsity.patterns import PATTERNS
from tests.conftest import TINY

ROWS = [(f"It was said {i} times that all is well", "good" if i % 3 else "bad") for i in range(60)]


def written(path, rows=ROWS, header=("body", "stars")):
    path.write_text("".join(",".join(row) + "\n" for row in [header, *rows]))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with params.yaml of a new project and a file of rows."""
    monkeypatch.chdir(tmp_path)
    document = parameters.default()
    parameters.drop_tasks(document, "r8")
    Path("params.yaml").write_text(dump(document))
    written(Path("reviews.csv"))
    return tmp_path


def add(*words):
    """The lines of `pruneonce add-task`."""
    parser = argparse.ArgumentParser()
    add_task.options(parser)
    return list(add_task.lines(parser.parse_args([*words, "--yes"])))


def params():
    return parse_yaml(Path("params.yaml").read_text(), "params.yaml")


def test_a_new_params_yaml_is_the_default_one_without_studies(folder):
    found, ours = params(), parse_yaml((projects.root() / "params.yaml").read_text(), "ours")
    assert found.pop("pruneonce") == projects.installed()
    assert list(found) == [key for key in ours if key not in ("study", "patterns")]
    assert list(found["tasks"]) == ["r8"]
    assert list(found["fetch"]) == ["minilm-l6", "r8", "corpus"]
    assert (found["gates"].pop("least_score"), ours["gates"].pop("least_score")) == (None, 0.9)  # of the code's own tasks
    same = set(found) - {"tasks", "fetch"}
    assert {key: found[key] for key in same} == {key: ours[key] for key in same}
    text = Path("params.yaml").read_text()
    assert "study" not in text
    assert "# a sparse model needs a higher rate than its teacher" in text


def test_add_task_writes_a_block_and_keeps_all_other_lines(folder):
    before = Path("params.yaml").read_text()
    lines = add("reviews.csv", "--name", "stars")
    after = Path("params.yaml").read_text()
    assert [line for line in before.splitlines() if line not in after.splitlines()] == [
        "fetch_local: {}                 # name: {path: my.csv, members: {train.csv: .}, sha256: null}"
    ]
    found = params()
    assert found["fetch_local"] == {"stars": {"path": "reviews.csv", "members": {"train.csv": "."}, "sha256": None}}
    assert list(found["tasks"]) == ["r8", "stars"]
    assert found["tasks"]["stars"] == {
        "prepare_task": {"source": "stars", "text": "body", "label": "stars"},
        "teach_task": {"epochs": 10.0},
        "finetune": {"epochs": 10.0},
        "quantize": {"epochs": 10.0},
        "gates": {"least_score": None, "most_score_drop": 0.37},
    }
    said = "\n".join(lines)
    assert "reviews.csv: 60 rows; 48 train, 6 validation, 6 test" in said
    assert "classes: good 40, bad 20" in said
    assert "Steps of the task: teach_task 30, finetune 30, quantize 30; about 2 minutes" in said
    assert lines[-1] == "Next: pruneonce run"


def test_a_second_task_comes_after_the_first_one(folder):
    add("reviews.csv", "--name", "one")
    add("reviews.csv", "--name", "two", "--text", "body", "--label", "stars")
    assert list(params()["tasks"]) == ["r8", "one", "two"]
    assert list(params()["fetch_local"]) == ["one", "two"]


def test_faults_of_the_data_are_said(folder):
    rows = [*ROWS, *ROWS[:5], ("", "good"), ("word " * 700, "good"), *[("word " * 700 + str(i), "rare") for i in range(4)]]
    lines = "\n".join(add(str(written(Path("x.csv"), rows))))
    assert "left out: 1 without a text or a label" in lines
    assert "left out: 5 whose text stands above already" in lines
    assert "warning: fewer than 20 rows of rare" in lines
    assert "warning: about 8% are longer than prepare_task.max_tokens, 128, and are cut" in lines


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            ["reviews.csv", "--name", "r8"],
            ConfigError,
            "expected a new name for the task, found 'r8', which params.yaml has",
        ),
        (["reviews.csv", "--name", "corpus"], ConfigError, "expected a new name for the task, found 'corpus'"),
        (["reviews.csv", "--name", "a b"], ConfigError, "expected letters, digits, _ and - for the name of the task"),
        (["reviews.csv", "--text", "boddy"], DataError, r"expected column 'boddy' in .*, found columns \['body', 'stars'\]"),
        (["reviews.csv", "--pair", "x"], DataError, r"expected column 'x' in .*, found columns \['body', 'stars'\]"),
        (
            ["reviews.csv", "--text", "stars", "--label", "body"],
            ConfigError,
            r"Give --kind, one of \[.*\]: label 'body' has 60 different values",
        ),
        (["none.csv"], DataError, "expected rows in none.csv, found no such file"),
        (["one.csv"], ConfigError, r"label 'label' has 1 different values"),
        (["one.csv", "--kind", "classification"], DataError, "expected two classes or more, found"),
        (["unclear.csv"], ConfigError, r"Give --label, one of \['a', 'b'\]\."),
        (["reviews.csv", "--kind", "regression"], DataError, "expected a number"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_nothing_is_written(folder, words, error, message):
    written(Path("one.csv"), [(text, "good") for text, _ in ROWS], ("body", "label"))
    written(Path("unclear.csv"), [(*row, "xy"[i % 2]) for i, row in enumerate(ROWS)], ("body", "a", "b"))
    words = [*words, "--label", "label"] if words[0] == "one.csv" else words
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(error, match=message):
        add(*words)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(48, (10.0, 10.0, 10.0)), (1600, (3.0, 3.2, 0.7)), (100_000, (0.048, 0.051, 0.011)), (10**7, (0.01, 0.01, 0.01))],
)
def test_epochs_are_for_about_as_many_steps(rows, epochs):
    recipes = {stage: {"batch_size": 16} for stage in tasks.STEPS}
    task = tasks.Chosen("reviews", Path("reviews.csv"), "body", "stars", "classification")
    assert tasks.training(task, recipes, rows) == {
        stage: {"epochs": each} for stage, each in zip(tasks.STEPS, epochs, strict=True)
    }


@pytest.mark.parametrize(("rate", "written"), [(2.0e-4, 1.0e-4), (3.0e-5, 3.0e-5)])
def test_pairs_learn_for_more_steps_with_room_for_both_texts_and_at_a_lower_rate(rate, written):
    recipes: dict = {stage: {"batch_size": 16, "max_tokens": 64} for stage in tasks.STEPS}
    recipes["teach_task"]["learning_rate"] = rate
    recipes["prepare_task"] = {"max_tokens": 128}
    task = tasks.Chosen("pairs", Path("pairs.csv"), "one", "same", "classification", pair="other")
    assert tasks.training(task, recipes, 4000) == {
        "teach_task": {"epochs": 2.4, "max_tokens": 128, "learning_rate": written},
        "finetune": {"epochs": 3.0, "max_tokens": 128},
        "quantize": {"epochs": 0.6, "max_tokens": 128},
    }


def test_an_embedding_reads_the_texts_of_a_pair_one_by_one():
    recipes = {stage: {"batch_size": 16, "max_tokens": 64} for stage in tasks.STEPS} | {"prepare_task": {"max_tokens": 128}}
    task = tasks.Chosen("pairs", Path("pairs.csv"), "one", None, "embedding", pair="other")
    assert tasks.training(task, recipes, 800) == {
        "teach_task": {"epochs": 3.0},
        "finetune": {"epochs": 3.2},
        "quantize": {"epochs": 0.7},
    }


@pytest.mark.parametrize(("kind", "drop"), [("classification", 0.03), ("embedding", 0.2)])
def test_the_largest_drop_is_of_the_kind_and_larger_for_few_test_rows(kind, drop):
    assert tasks.gates(kind, 900) == tasks.gates(kind, 10_000) == {"least_score": None, "most_score_drop": drop}
    assert tasks.gates(kind, 100)["most_score_drop"] == pytest.approx(drop + 0.06)
    assert tasks.gates(kind, 20)["most_score_drop"] < 0.5


def test_the_steps_that_are_said_are_those_of_what_the_model_reads(folder):
    """48 training rows in batches of 16, 10 times: twice as many steps where both texts of a pair are read alone.

    The dense model does the task already.
    """
    written(folder / "pairs.csv", [(f"text {i}", f"other {i}") for i in range(60)], ("one", "two"))
    for name, words, steps in (("alone", (), 30), ("pairs", ("--pair", "two"), 60)):
        lines = add("pairs.csv", "--name", name, "--kind", "embedding", "--text", "one", *words)
        assert any(f"Steps of the task: teach_task 0, finetune {steps}" in line for line in lines), lines


def answers(*typed):
    """What a person types, line by line."""
    waiting = list(typed)
    return lambda question: waiting.pop(0)


GIVEN = asking.Given(Path("reviews.csv"), None, None, None, None, None)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([""], ("body", "stars", "classification")),
        (["n", "", "stars", "multi_label"], ("body", "stars", "multi_label")),
        (["no", "x", "stars", "body", "regression"], ("stars", "body", "regression")),
    ],
)
def test_a_person_is_asked(folder, typed, expected):
    *said, chosen = asking.choose(GIVEN, answers(*typed))
    assert (chosen.text, chosen.label, chosen.kind) == expected
    assert said[-1] == "Guessed: text 'body', label 'stars', kind classification"


def test_a_person_is_not_asked_for_ever(folder):
    with pytest.raises(ConfigError, match=r"expected the text, one of .*, found 'z' three times"):
        list(asking.choose(GIVEN, answers("n", "x", "y", "z")))


def test_nobody_is_asked_what_is_given(folder):
    given = asking.Given(Path("reviews.csv"), None, "body", "stars", None, None)
    (chosen,) = asking.choose(given, answers())
    assert (chosen.name, chosen.text, chosen.label) == ("reviews", "body", "stars")


def test_another_model_brings_its_folder_and_its_length(folder):
    document = parameters.default()
    parameters.drop_tasks(document)
    parameters.set_model(document, str(TINY / "model"), folder)
    parameters.set_corpus(document, ("r8", "Text"), own=True)
    assert document["common"]["model"] == "model"
    assert (folder / document["fetch_local"]["model"]["path"]).resolve() == TINY / "model"
    assert document["prepare_corpus"]["block_tokens"] == document["evaluate"]["latency_tokens"] == 64
    assert document["report"]["title"] == "model, pruned once"
    assert list(document["fetch"]) == []
    with pytest.raises(ConfigError, match="tasks"):  # there is none
        parameters.checked(document)
    assert "\nfetch: {}\n\nfetch_local:\n" in dump(document)


def test_a_model_of_the_hub_has_a_commit(folder):
    document = parameters.default()
    parameters.set_model(document, f"owner/name@{'0a' * 20}", folder)
    assert parameters.checked(document).fetch["model"].revision == "0a" * 20
    with pytest.raises(ConfigError, match=r"expected a model's folder with a config.json, or OWNER/NAME@COMMIT"):
        parameters.set_model(parameters.default(), "owner/name@main", folder)


@pytest.mark.parametrize(("text", "found"), [("{", "no JSON"), ("[]", "a list")])
def test_a_damaged_configuration_of_a_model_is_one_error(folder, text, found):
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text(text)
    with pytest.raises(ModelError, match=f"expected a model's configuration in damaged/config.json, found {found}"):
        parameters.set_model(parameters.default(), "damaged", folder)


def test_the_default_task_takes_no_columns(folder):
    """They describe the rows of --data."""
    args = cli._parser().parse_args(["init", "new", "--text", "body", "--kind", "regression"])
    with pytest.raises(ConfigError, match=r"expected --data FILE beside --text, --kind, found none"):
        list(args.lines(args))
    assert not Path("new").exists()


def test_a_task_that_is_dropped_leaves_the_comments_of_the_gates():
    document = parameters.default()
    parameters.drop_tasks(document)
    assert "# null: better than the most frequent class" in dump(document)


def test_dvc_yaml_of_another_version_is_written_anew(folder, monkeypatch):
    Path("dvc.yaml").write_text(wiring.text(imports=True))
    assert wiring.refresh() is None
    monkeypatch.setattr(projects, "installed", lambda: "9.9.9")
    assert wiring.refresh() == f"dvc.yaml is now that of pruneonce 9.9.9, before it was that of {init_version()}."
    assert Path("dvc.yaml").read_text() == wiring.text(imports=True)
    assert wiring.refresh() is None


def init_version():
    return projects.metadata.version("pruneonce")


def test_edits_of_dvc_yaml_are_not_lost(folder, monkeypatch):
    Path("dvc.yaml").write_text(wiring.text(imports=False) + "# mine\n")
    monkeypatch.setattr(projects, "installed", lambda: "9.9.9")
    with pytest.raises(PipelineError, match=r"found edits, which 9.9.9 would overwrite"):
        wiring.refresh()
    assert Path("dvc.yaml").read_text().endswith("# mine\n")


@pytest.mark.parametrize("name", create.OURS)
def test_a_folder_with_a_project_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(PipelineError, match=rf"expected no project in .* yet, found {re.escape(name)}"):
        create.check(tmp_path)


def test_a_failure_leaves_nothing_behind(folder, monkeypatch):
    def fails(*_):
        raise PipelineError("no git")

    def repository(place: Path, **_):
        for name in (".git/objects", ".dvc/tmp"):
            (place / name).mkdir(parents=True)
        (place / ".dvcignore").touch()

    monkeypatch.setattr(create, "_commit", fails)
    monkeypatch.setattr(create, "_repository", repository)
    for name in ("README.md", ".gitignore"):
        Path(name).write_text("mine\n")
    checked = parameters.checked(parameters.default())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for place in (Path(), Path("new")):
        with pytest.raises(PipelineError, match="no git"):
            list(create.create(place, "x", checked, imports=False, data=[]))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not Path("new").exists()


def test_the_options_of_both_commands_are_the_same():
    parser = cli._parser()
    words = ["--text", "a", "--label", "b", "--pair", "c", "--kind", "regression", "--name", "d", "--yes"]
    one, other = (
        parser.parse_args(["init", "f", "--data", "x.csv", *words]),
        parser.parse_args(["add-task", "x.csv", *words]),
    )
    assert vars(one).items() >= {key: value for key, value in vars(other).items() if key not in ("command", "lines")}.items()


@pytest.fixture
def model(folder):
    """(dense, sparse in 2:4): two folders as somebody published them."""
    torch.manual_seed(0)
    made = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(TINY / "model"))
    tokenizer = checkpoint.load_tokenizer(TINY / "model")
    checkpoint.save(made, tokenizer, Path("dense"))
    for linear in masks.prunable(made, r"^encoder\.").values():
        linear.weight.data *= PATTERNS["2:4"].mask(linear.weight.detach().abs(), 0.5)
    checkpoint.save(made, tokenizer, Path("sparse"))


def start(*words):
    """The lines of `pruneonce init`, up to the project's files; the document that would be written."""
    args = cli._parser().parse_args(["init", "new", "--data", "reviews.csv", "--yes", *words])
    return list(args.lines(args))


def test_a_sparse_checkpoint_stands_in_place_of_sparsify(folder, model, monkeypatch):
    monkeypatch.setattr(create, "_repository", lambda *_, **__: None)
    monkeypatch.setattr(create, "_commit", lambda *_: None)
    lines = start("--model", "dense", "--sparse-model", "sparse")
    assert lines[0] == "12 linears are pruned: 50.00% of their weights are zero (50.0% to 50.0% of a linear), pattern 2:4"
    made = load(Path("new/params.yaml"))
    assert (made.sparsify.pattern, made.sparsify.sparsity, made.gates.least_sparsity) == ("2:4", 0.5, 0.49)
    assert {name: source.path for name, source in made.fetch_local.items()} == {
        "model": "../dense",
        "sparse-model": "../sparse",
        "reviews": "../reviews.csv",
    }
    wired = parse_yaml(Path("new/dvc.yaml").read_text(), "dvc.yaml")["stages"]
    assert "import_sparse" in wired
    assert "sparsify" not in wired


def test_a_dense_model_makes_no_project(folder, model):
    with pytest.raises(ModelError, match="expected a sparse checkpoint in dense"):
        start("--model", "dense", "--sparse-model", "dense")
    assert not Path("new").exists()


def test_the_end_of_the_input_is_an_error(monkeypatch):
    def end(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    with pytest.raises(ConfigError, match="found the end of the input"):
        asking._input("Is that right?")


def test_a_file_without_names_of_columns_is_refused(folder):
    Path("bare.csv").write_text(",\n" + "a text,b\n" * 20)
    given = asking.Given(Path("bare.csv"), None, None, None, None, None)
    with pytest.raises(DataError, match="expected the names of the columns in the first line"):
        list(asking.choose(given, None))
