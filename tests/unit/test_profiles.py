"""Profiles: what `extends` lays over what, and whose comment a number has afterwards."""

import subprocess
from pathlib import Path

import pytest

from pipeline import params, profiles
from pruneonce.errors import ConfigError

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
    assert params.parse_yaml(profiles.read("both"), "") == {"a": 1, "b": 2, "c": 3}
    assert params.parse_yaml(profiles.read("other"), "") == {"a": 1, "b": 1, "c": 1}
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
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "add", "params.yaml"], check=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "commit", "--quiet", "-m", "params"], check=True)
    assert profiles.select("mine").sparsify.sparsity == 0.9
    written = Path("params.yaml").read_text()
    assert profiles.select("mine") == params.load()
    assert Path("params.yaml").read_text() == written, "again: not a byte changes"
    assert profiles.select("tiny").sparsify.sparsity == 0.85
    Path("params.yaml").write_text(written + "# mine\n")
    with pytest.raises(ConfigError, match="found edits that profile 'tiny' would overwrite"):
        profiles.select("tiny")


def test_a_profile_that_differs_says_what_and_nothing_else(monkeypatch):
    """What bert-base-90 changes of bert-base-85 is what its file holds."""
    monkeypatch.chdir(ROOT)
    less, more = (params.parse_yaml(profiles.read(f"bert-base-{n}"), "") for n in (85, 90))
    assert more["sparsify"].pop("sparsity") == 0.9
    assert less["sparsify"].pop("sparsity") == 0.85
    assert less.pop("report") != more.pop("report")
    assert less == more
    assert [len(document["tasks"]) for document in (less, more)] == [5, 5]
