"""Profiles: what `extends` lays over what, and whose comment a number has afterwards."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.params import profiles
from pipeline.params.document import load, parse
from pipeline.params.reading import parse_yaml
from pruneonce.errors import ConfigError
from tests.conftest import commit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of profiles; returns what writes one."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / "profiles" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


BASE = """\
# The base.
launcher: python                # what starts it

# Common to all.
common:                         # one for every stage
  model: small                  # ours
  # What is pruned:
  prunable: ^encoder            # paper
  threads: null

fetch: {}                       # nothing yet

corpus:
  documents:
    - {source: a}               # the first
    - {source: b}

# One block a task.
tasks:
  one:
    finetune: {epochs: 3}       # int
"""


def body(text):
    first, _, rest = text.partition("\n")
    assert first.startswith("# Written by a run from profiles/")
    return rest


def test_a_number_takes_the_comment_of_the_file_that_sets_it(folder):
    folder("base", BASE)
    folder(
        "over",
        "# On top.\nextends: base\ncommon:\n  model: large   # theirs\n  prunable: ^layers\n\n# lost\n"
        "fetch:\n  a: {rows: 1}   # new\ncorpus:\n  documents:\n    - {source: z}   # the last\n"
        "tasks:\n  one:\n    finetune: {epochs: 4}\n  two:\n    finetune: {}\n",
    )
    assert body(profiles.read("over")) == (
        "# On top.\n"
        "launcher: python                # what starts it\n"
        "\n"
        "# Common to all.\n"
        "common:                         # one for every stage\n"
        "  model: large   # theirs\n"
        "  # What is pruned:\n"
        "  prunable: ^layers\n"
        "  threads: null\n"
        "\n"
        "fetch:\n"
        "  a: {rows: 1}   # new\n"
        "\n"
        "corpus:\n"
        "  documents:\n"
        "    - {source: z}   # the last\n"
        "\n"
        "# One block a task.\n"
        "tasks:\n"
        "  one:\n"
        "    finetune: {epochs: 4}\n"
        "  two:\n"
        "    finetune: {}\n"
    )


def test_a_profile_without_extends_is_its_own_text(folder):
    folder("base", BASE)
    assert profiles.read("base") == BASE


def test_names_are_laid_in_order_and_the_file_itself_last(folder):
    folder("one", "a: 1\nb: 1\nc: 1\n")
    folder("parts/two", "b: 2\nc: 2\n")
    folder("both", "extends: [one, parts/two]\nc: 3\n")
    folder("other", "extends: [parts/two, one]\n")
    assert parse_yaml(profiles.read("both"), "") == {"a": 1, "b": 2, "c": 3}
    assert parse_yaml(profiles.read("other"), "") == {"a": 1, "b": 1, "c": 1}
    assert profiles.names() == ["default", "both", "one", "other"], "a part is no profile"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: no-such\n", r"expected one of the profiles \['default', 'over'\], found 'no-such'\. .*\['parts/x'\]"),
        ("extends: over\n", "found over extends over"),
        ("extends: parts/x\n", "found over extends parts/x extends over"),
        ("- a\n", r"expected sections in profiles/over\.yaml, found \['a'\]"),
    ],
)
def test_what_cannot_be_extended_is_an_error(folder, text, message):
    folder("over", text)
    folder("parts/x", "extends: over\n")
    with pytest.raises(ConfigError, match=message):
        profiles.read("over")


def test_what_a_profile_wrote_may_be_replaced_and_what_was_edited_since_may_not(folder):
    tiny = (ROOT / "profiles/tiny.yaml").read_text()
    folder("tiny", tiny)
    folder("mine", "extends: tiny\nsparsify: {sparsity: 0.9}\n")
    Path("params.yaml").write_text(tiny)
    commit(Path(), "params.yaml")
    assert profiles.select("mine").sparsify.sparsity == 0.9
    written = Path("params.yaml").read_text()
    assert profiles.select("mine") == load()
    assert Path("params.yaml").read_text() == written, "again: not a byte changes"
    assert profiles.select("tiny").sparsify.sparsity == 0.85
    Path("params.yaml").write_text(written + "# mine\n")
    with pytest.raises(ConfigError, match="found edits that profile 'tiny' would overwrite"):
        profiles.select("tiny")


@pytest.mark.parametrize(
    ("git", "message"),
    [
        ("none", "expected git, found none"),
        (
            "no repository",
            r"expected params\.yaml in a commit of git, found: fatal: not a git repository .* git init && git add",
        ),
        ("nothing committed", r"expected params\.yaml in a commit of git, found: fatal: .*HEAD"),
    ],
)
@pytest.mark.parametrize(("profile", "overrides"), [("tiny", []), (None, ["sparsify.sparsity=0.9"]), (None, [])])
def test_where_git_cannot_say_nothing_is_overwritten(folder, monkeypatch, git, message, profile, overrides):
    """A copy without .git, say: DVC would not run there either, and say so in a traceback."""
    edited = (ROOT / "profiles/tiny.yaml").read_text().replace("sparsity: 0.85", "sparsity: 0.8", 1)
    folder("tiny", edited)
    Path("params.yaml").write_text(edited)
    if git == "nothing committed":
        subprocess.run(["git", "init", "--quiet"], check=True)
    if git == "none":
        monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=message):
        profiles.select(profile, overrides)
    assert Path("params.yaml").read_text() == edited


def test_params_is_replaced_whole_or_not_at_all(folder, monkeypatch):
    tiny = (ROOT / "profiles/tiny.yaml").read_text()
    Path("params.yaml").write_text(tiny)
    commit(Path(), "params.yaml")

    def cut(path, text, **how):
        with path.open("w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="No space left"):
        profiles.select(None, ["sparsify.sparsity=0.9"])
    assert Path("params.yaml").read_text() == tiny


def test_a_profile_that_differs_says_what_and_nothing_else(monkeypatch):
    """What bert-base-90 changes of bert-base-85 is what its file holds."""
    monkeypatch.chdir(ROOT)
    less, more = (parse_yaml(profiles.read(f"bert-base-{n}"), "") for n in (85, 90))
    assert more["sparsify"].pop("sparsity") == 0.9
    assert less["sparsify"].pop("sparsity") == 0.85
    assert more["gates"].pop("least_sparsity") == 0.89
    assert less["gates"].pop("least_sparsity") == 0.84
    assert less["report"] == more["report"]
    assert less == more
    assert [len(document["tasks"]) for document in (less, more)] == [5, 5]


PAPER = ["bert-base-85", "bert-base-90", "bert-large-90", "distilbert-85", "distilbert-90"]
SENTENCES = ["mnli", "qnli", "qqp", "sst2"]


@pytest.mark.parametrize("name", PAPER)
def test_a_profile_of_the_paper_s_prunes_by_the_paper_s_numbers(monkeypatch, name):
    """Zafrir et al. 2021 and its reference; a 90 % profile of the reference once pruned to 85 %, and nobody noticed."""
    monkeypatch.chdir(ROOT)
    p = parse(parse_yaml(profiles.read(name), name), name)
    assert p.sparsify.sparsity == int(name[-2:]) / 100
    assert p.common.model == name[:-3]
    bert = name.startswith("bert")
    assert (p.prepare_corpus.block_tokens, p.prepare_corpus.held_out_ratio) == (512, 0.05)
    assert (p.prepare_corpus.next_sentence, p.prepare_corpus.short_ratio) == (bert, 0.1)
    for stage in (p.prepare_teacher, p.sparsify):
        assert (stage.steps, stage.warmup_steps, stage.batch_size, stage.learning_rate) == (100_000, 1_000, 256, 5e-5)
        assert (stage.weight_decay, stage.clip_norm, stage.masking_probability) == (0.01, 1.0, 0.15)
    s, d = p.sparsify, p.sparsify.distillation
    assert (s.initial_sparsity, s.pattern, s.scope, s.criterion, s.schedule) == (
        0.0,
        "unstructured",
        "uniform",
        "magnitude",
        "rewound",
    )
    assert (s.prune_begin_steps, s.prune_end_steps, s.freeze_masks_steps, s.prune_every_steps) == (0, 50_000, 80_000, 1_000)
    assert (d.hard_weight, d.soft_weight, d.temperature, s.soft_positions) == (0.5, 0.5, 2.0, "all")
    assert (d.hidden_weight, d.attention_weight) == (0.0, 0.0)


@pytest.mark.parametrize("name", [*PAPER, "bert-base-90-obert"])
def test_a_profile_of_the_paper_s_has_its_tasks_and_their_numbers(monkeypatch, name):
    """Intel's own commands: (rate, epochs, batch, tokens) of fine-tuning, and of what follows."""
    monkeypatch.chdir(ROOT)
    p = parse(parse_yaml(profiles.read(name), name), name)
    assert sorted(p.tasks) == [*SENTENCES[:3], "squad1", "sst2"]
    small, obert = name.startswith("distilbert"), name.endswith("obert")
    temperature = 5.5 if obert else 2.0
    rates = {"squad1": 1.8e-4 if small else 1.5e-4} | dict.fromkeys(SENTENCES, 1.5e-4 if small or obert else 1e-4)
    quantized = {"squad1": 1e-5} | dict.fromkeys(SENTENCES, 1e-6 if small else 1e-5)
    for task in p.tasks:
        answers = task == "squad1"
        fine, qat = p.section("finetune", task), p.section("quantize", task)
        epochs = 8 if answers or obert else 9
        assert (fine.learning_rate, fine.epochs, fine.batch_size, fine.max_tokens) == (
            rates[task],
            epochs,
            12 if answers else 32,
            384 if answers else 128,
        )
        assert (qat.learning_rate, qat.epochs) == (quantized[task], 2 if answers else 3)
        assert fine.distillation == qat.distillation
        weights = fine.distillation.model_dump()
        assert weights.pop("temperature") == temperature
        assert weights == {"hard_weight": 0.0, "soft_weight": 1.0, "hidden_weight": 0.0, "attention_weight": 0.0}
    assert p.section("prepare_task", "squad1").stride_tokens == 128
    if small:
        fine, qat = p.section("finetune", "squad1"), p.section("quantize", "squad1")
        assert (fine.warmup_ratio, fine.weight_decay, qat.warmup_ratio, qat.weight_decay) == (0.05, 0.01, 0.1, 0.0)
        fine, qat = p.section("finetune", "sst2"), p.section("quantize", "sst2")
        assert (fine.warmup_ratio, fine.weight_decay, qat.warmup_ratio, qat.weight_decay) == (0.0, 0.0, 0.01, 0.01)


def test_obert_s_recipe_is_the_paper_s_but_for_how_it_prunes(monkeypatch):
    monkeypatch.chdir(ROOT)
    p = parse(parse_yaml(profiles.read("bert-base-90-obert"), ""), "").sparsify
    assert (p.sparsity, p.initial_sparsity) == (0.9, 0.7)
    d = p.distillation
    assert (d.temperature, d.hard_weight, d.soft_weight) == (5.5, 0.0, 1.0)
    assert p.learning_rate == 5e-4
    assert p.steps / p.prune_every_steps == pytest.approx(6, abs=0.01), "a rewind every half of 3 epochs"


def test_every_number_of_the_paper_s_profiles_has_its_source_beside_it():
    """A word before the number's meaning: paper, ref, int, oBERT, bert, or ours."""
    files = [ROOT / f"profiles/{name}.yaml" for name in [*PAPER, "bert-base-90-obert", "recipes/paper"]]
    number = re.compile(r"^  .*: (-?[0-9][0-9.e+-]*)\s*(#.*)?$")
    bare = [
        f"{file.name}:{n}: {line.strip()}"
        for file in files
        for n, line in enumerate(file.read_text().partition("\nstudy:")[0].splitlines(), 1)
        if number.match(line) and not re.search(r"# (paper|ref|int|oBERT|bert|ours)\b", line)
    ]
    assert bare == []


DROPS = """\
tasks:                          # beside
  # about one
  one: {epochs: 1}              # int
  # about two
  two:
    epochs: 2                   # ref
  # about three
  three: {epochs: 3}

# Sources.
fetch: {a: {x: 1}, b: {x: 2}}   # two of them
fetch_local:
  c: {path: null}

# the end
end: null
"""


@pytest.mark.parametrize(
    ("over", "tasks", "text"),
    [
        (
            "tasks: {one: null}",
            {"two": {"epochs": 2}, "three": {"epochs": 3}},
            "tasks:                          # beside\n  # about two\n  two:\n    epochs: 2                   # ref\n"
            "  # about three\n  three: {epochs: 3}\n\n# Sources.\n",
        ),
        (
            "tasks: {two: null}",
            {"one": {"epochs": 1}, "three": {"epochs": 3}},
            "tasks:                          # beside\n  # about one\n  one: {epochs: 1}              # int\n"
            "  # about three\n  three: {epochs: 3}\n\n# Sources.\n",
        ),
        (
            "tasks:\n  three: null\n  one: null\n  four: {epochs: 4}",
            {"two": {"epochs": 2}, "four": {"epochs": 4}},
            "tasks:                          # beside\n  # about two\n  two:\n    epochs: 2                   # ref\n"
            "  four: {epochs: 4}\n\n# Sources.\n",
        ),
        (
            "tasks:\n  one: null\n  two: null\n  three: null\n  # new\n  four: {epochs: 4}",
            {"four": {"epochs": 4}},
            "\n# Sources.\n",
        ),
    ],
)
def test_a_task_that_is_null_is_dropped_and_its_comments_with_it(folder, over, tasks, text):
    folder("base", DROPS)
    folder("over", f"extends: base\n{over}\n")
    found = body(profiles.read("over"))
    assert parse_yaml(found, "")["tasks"] == tasks
    assert text in found
    for name in {"one", "two", "three"} - set(tasks):
        assert f"about {name}" not in found, "a comment of what is gone"
    for name in {"one", "two", "three"} & set(tasks):
        assert f"# about {name}\n  {name}:" in found
    assert found.endswith("# the end\nend: null\n"), "elsewhere null is a value"


def test_a_source_that_is_null_is_dropped_and_elsewhere_null_is_a_value(folder):
    folder("base", DROPS)
    folder("parts/less", "fetch: {a: null}\nfetch_local: {c: null}\n")
    folder("over", "extends: [base, parts/less]\ntasks: {one: {epochs: null}}\n")
    found = parse_yaml(profiles.read("over"), "")
    assert (found["fetch"], found["fetch_local"]) == ({"b": {"x": 2}}, {})
    assert found["tasks"]["one"] == {"epochs": None}
    folder("again", "extends: over\nfetch: {a: {x: 3}}\n")
    assert parse_yaml(profiles.read("again"), "")["fetch"] == {"b": {"x": 2}, "a": {"x": 3}}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("tasks: {no-such: null}", r"tasks\.no-such, which profile 'over' drops, .*found there \['one', 'two', 'three'\]"),
        ("fetch: {one: null}", r"fetch\.one, which profile 'over' drops, in what it extends, found there \['a', 'b'\]"),
        ("extends: 7", r"found extends twice, in lines 1 and 2"),
    ],
)
def test_what_is_not_inherited_cannot_be_dropped(folder, over, message):
    folder("base", DROPS)
    folder("over", f"extends: base\n{over}\n")
    with pytest.raises(ConfigError, match=message):
        profiles.read("over")


def test_null_in_a_whole_file_is_no_task(folder, monkeypatch):
    tiny = (ROOT / "profiles/tiny.yaml").read_text()
    folder("tiny", f"{tiny}  other: null\n")
    with pytest.raises(ConfigError, match=r"tasks\.other: Input should be a valid dictionary, found None"):
        parse(parse_yaml(profiles.read("tiny"), "tiny"), "tiny")


@pytest.mark.parametrize("bases", ["7", "{a: 1}", "[[tiny]]", "null", "[tiny, tiny]", "[1]"])
def test_extends_is_a_name_or_names_that_differ(folder, bases):
    folder("tiny", "a: 1\n")
    folder("over", f"extends: {bases}\n")
    with pytest.raises(ConfigError, match=r"a name, or names that differ, in `extends` of profiles/over\.yaml, found "):
        profiles.read("over")


def test_files_that_extend_one_another_end_soon(folder):
    """Each of so many files names two of the next ones: twice as much to read with every one."""
    for n in range(40):
        folder(f"p{n}", f"extends: [p{n + 1}, p{n + 2}]\n")
    with pytest.raises(ConfigError, match="`extends` ends soon, found p0 extends p1 extends p2"):
        profiles.read("p0")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../tiny", "a\0b", "x" * 5000, "/etc/passwd", "tiny.yaml", "parts", "\ud800"]
)
def test_a_name_that_is_none_is_one_error(folder, name):
    folder("tiny", "a: 1\n")
    folder("parts/x", "a: 1\n")
    with pytest.raises(ConfigError, match="expected one of the profiles") as raised:
        profiles.read(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("raw", "message"), [(b"a: \xff", r"UTF-8, found .*profiles/tiny\.yaml"), (b"a: \0", "ReaderError")]
)
def test_a_profile_that_cannot_be_read_is_one_error(folder, raw, message):
    folder("tiny", "")
    Path("profiles/tiny.yaml").write_bytes(raw)
    with pytest.raises(ConfigError, match=message):
        profiles.read("tiny")


def test_the_refusal_says_the_commands_and_each_of_them_works(folder):
    """What a person is told is pasted: after any of the three the profile is taken."""
    tiny = (ROOT / "profiles/tiny.yaml").read_text()
    folder("tiny", tiny)
    committed = tiny.replace("seed: 1", "seed: 7", 1)
    Path("params.yaml").write_text(committed)
    commit(Path(), "params.yaml")
    edited = tiny.replace("seed: 1", "seed: 8", 1)
    told = r"Keep them with: (.*); or as a profile with: (.*); or drop them with: (.*)\. Then run again"
    for number in (3, 2, 1):
        Path("params.yaml").write_text(edited)
        with pytest.raises(ConfigError, match=told) as raised:
            profiles.select("tiny")
        with pytest.raises(ConfigError, match=told):
            profiles.check("tiny")
        command = re.search(told, str(raised.value))[number].replace("NAME", "mine")
        command = command.replace("git commit", "git -c user.name=a -c user.email=a@b.c commit -q")
        subprocess.run(command, shell=True, check=True, capture_output=True)
        assert profiles.check("tiny").common.seed == 1
        assert "seed: 1" not in Path("params.yaml").read_text(), "asked, not written"
        profiles.select("tiny")
        assert Path("params.yaml").read_text() == tiny
        Path("profiles/mine.yaml").unlink(missing_ok=True)


def test_overrides_of_several_lines_stay_in_the_first_line(folder):
    tiny = (ROOT / "profiles/tiny.yaml").read_text()
    Path("params.yaml").write_text(tiny)
    commit(Path(), "params.yaml")
    assert profiles.select(None, ["report.title=|\n  one\n  two\n"]).report.title == "one\ntwo\n"
    assert load().report.title == "one\ntwo\n"
    assert profiles.select(None, ["common.seed=2"]).report.title == "one\ntwo\n"


@pytest.mark.parametrize(
    "file", ["params.yaml", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "profiles").rglob("*.yaml"))]
)
def test_a_file_is_written_as_it_was_read(file):
    """So `pruneonce add-task` changes no line but those that it adds."""
    text = (ROOT / file).read_text()
    assert profiles.dump(profiles.round_trip().load(text)) == text
