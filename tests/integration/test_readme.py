"""What the README and the pages of docs/ tell a newcomer to type or to save works as it stands.

Their bash blocks are run by tests/e2e; here is what takes seconds: the profiles to save, and the commands within sentences.
"""

import argparse
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.params import profiles
from pipeline.params.reading import read_yaml
from pipeline.plan import costs
from pipeline.plan import page as plan_page
from tests.conftest import ROOT, commit

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
# File to save -> its text: the yaml blocks of the README whose first line is a file's name.
SAVED = dict(re.findall(r"^```yaml\n# (profiles/\S+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
MINILM = {**BERT, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12}
OWN = {**MINILM, "num_hidden_layers": 3}
TABLES = {
    "reviews.csv": ["body,stars", *(f'"number {i}, said at length",{"good" if i % 2 else "bad"}' for i in range(40))],
    "duplicates.csv": ["question,other_question,same", *(f"what is {i},what was {i},{'yn'[i % 2]}" for i in range(50))],
}


def command_of(page: str, start: str) -> str:
    """The one line of a page's bash blocks that begins so."""
    (found,) = re.findall(rf"^{re.escape(start)}.*$", page, re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """A clone after the default profile's model was fetched, the reader's files beside it, and the profiles saved."""
    folder = tmp_path_factory.mktemp("reader") / "project"
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    for name in ("dvc.yaml", "params.yaml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    commit(folder)
    for place, facts in (("data/raw/minilm-l6", MINILM), ("../my-model", OWN)):
        (folder / place).mkdir(parents=True)
        (folder / place / "config.json").write_text(json.dumps(facts))
    for name, lines in TABLES.items():
        (folder.parent / name).write_text("\n".join(lines) + "\n")
    entry = {"params": {"params.yaml": {"fetch.minilm-l6": read_yaml(ROOT / "params.yaml")["fetch"]["minilm-l6"]}}}
    with (folder / "dvc.lock").open("w") as file:
        YAML(typ="safe").dump({"schema": "2.0", "stages": {"fetch@minilm-l6": {"cmd": "true", **entry}}}, file)
    for name, text in SAVED.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def project(committed, monkeypatch) -> Path:
    """It, with params.yaml as git has it."""
    shutil.copy(ROOT / "params.yaml", committed)
    monkeypatch.chdir(committed)
    return committed


def page(profile: str) -> str:
    return "\n".join(plan_page.lines(profile, costs.Rate(gpus=1, tflops=None, tokens=None)))


@pytest.mark.parametrize(
    ("profile", "tasks", "says"),
    [
        ("reviews", "r8 tweets reviews", ["reviews +train +40 "]),
        ("duplicates", "r8 tweets duplicates", ["duplicates +train +50 "]),
        ("my-model", "r8 tweets", ["Model my-model: 3 layers of 384", r"my-model +\(model\)"]),
        ("bert", "r8 tweets", ["Model bert: 12 layers of 768", r"prunable: 84\.93 M"]),
    ],
)
def test_a_profile_of_the_readme_is_planned_as_it_was_pasted(project, profile, tasks, says):
    assert set(SAVED) == {f"profiles/{name}.yaml" for name in ("reviews", "duplicates", "my-model", "bert")}
    planned = page(profile)
    assert f"\nTasks: {tasks}\n" in planned
    for line in says:
        assert re.search(line, planned), line


def test_a_profile_leaves_an_inherited_task_out_by_null(project):
    (project / "profiles/fewer.yaml").write_text("extends: reviews\ntasks:\n  r8: null\n")
    assert "\nTasks: tweets reviews\n" in page("fewer")


def test_the_plan_that_the_readme_shows_is_the_one_that_is_printed(project):
    asked = command_of(README, "pruneonce plan bert")
    shown = re.search(rf"^{re.escape(asked)}\n```\n\n```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert asked == "pruneonce plan bert-base-90 --tflops 100 --gpus 8"
    printed = {
        " ".join(line.split()) for line in plan_page.lines("bert-base-90", costs.Rate(gpus=8, tflops=100.0, tokens=None))
    }
    lines = [" ".join(line.split()) for line in shown[1].splitlines() if line.strip() != "..."]
    assert len(lines) >= 15
    assert [line for line in lines if line not in printed] == []


def inline() -> list[list[str]]:
    """The words of every command that stands within a sentence or an sh block of a page, each once."""
    names = ("make ", "python -m flows.compress ", "dvc exp run ")
    spans = [
        found
        for text in (path.read_text() for path in PAGES)
        for found in [
            *re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)),
            *(
                line
                for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
                for line in block.splitlines()
            ),
        ]
    ]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(s)) for s in spans if s.startswith(names))]


def settings(words: list[str]) -> tuple[str | None, list[str]] | None:
    """(profile, overrides) of a command that runs the pipeline, else None. Fails where make knows no such target."""
    if words[0] == "make":
        env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        said = subprocess.run(["make", "-n", "-o", "install", *words[1:]], env=env, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        words = shlex.split(said.stdout) if "flows.compress" in said.stdout else []
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--profile")
    parser.add_argument("--pipeline")
    parser.add_argument("--set", "-S", action="append", default=[])
    found, _ = parser.parse_known_args(words)
    return (found.profile, found.set) if found.profile or found.set else None


def test_commands_within_sentences_name_targets_profiles_and_parameters_that_are_there(project):
    runs = 0
    for words in inline():
        asked = settings(words)
        if asked:
            runs += 1
            shutil.copy(ROOT / "params.yaml", project)
            profiles.select(*asked)
    assert len(inline()) >= 15
    assert runs >= 8


def terminal(command: str, cwd: Path, *, columns: int) -> str:
    """What a command prints to a terminal of this width."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb", "PAGER": "cat"}
    with subprocess.Popen(["bash", "-c", command], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while part := _read(ours):
            said += part
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # its other end is closed
        return b""


def test_experiments_are_shown_with_their_numbers_in_a_narrow_terminal(tmp_path, monkeypatch):
    """With this project's parameters and one stage that takes no time."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    program = (
        'mkdir -p data/metrics; echo \'{"r8": {"int8": 0.9731}, "tweets": {"int8": 0.9502}}\' > data/metrics/report.json'
    )
    metrics = [{"data/metrics/report.json": {"cache": False}}]
    stage = {"cmd": program, "params": ["sparsify.sparsity"], "metrics": metrics}
    with (tmp_path / "dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": {"report": stage}}, file)
    commit(tmp_path)
    identity = "git config user.name test && git config user.email test@example.org && git config commit.gpgsign false"
    for command in (identity, "dvc init -q", "git add -A", "git commit -qm dvc", command_of(README, "dvc exp run")):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    show = command_of(README, "dvc exp show")
    piped = subprocess.run(["bash", "-c", show], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    for said in (piped, terminal(show, tmp_path, columns=80)):
        header, _, first, *_ = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.strip().splitlines()]
        assert header == ["Experiment", "r8.int8", "tweets.int8", "sparsify.sparsity"]
        assert first == ["workspace", "0.9731", "0.9502", "0.9"]
