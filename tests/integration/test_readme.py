"""README.md and the pages of docs/: their commands work, their output is what is printed, their links lead somewhere.

tests/e2e runs their bash blocks. Here are the tests that take seconds.
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
from functools import cache, partial
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from docs import scale, write
from pipeline.params import profiles
from pipeline.params.reading import read_yaml
from pipeline.plan import costs
from pipeline.plan import page as plan_page
from tests.conftest import ROOT, commit, copy_project
from tests.pages import IN_ORDER, PAGES, blocks, inline, saved

SAVED = saved()
BERT = {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512}
MINILM = {**BERT, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 12}
OWN = {**MINILM, "num_hidden_layers": 3}
TABLES = {
    "reviews.csv": ["body,stars", *(f'"number {i}, said at length",{"good" if i % 2 else "bad"}' for i in range(40))],
    "duplicates.csv": ["question,other_question,same", *(f"what is {i},what was {i},{'yn'[i % 2]}" for i in range(50))],
}


# Commands that no bash block has, and that only a tool or a server of their own could check: their beginning -> why.
NOT_RUN = {
    "source .venv/bin/activate": "a bash block has it",
    "git checkout ": "tests/e2e/test_compress.py runs it",
    "git clean ": "tests/e2e/test_compress.py runs it",
    "git commit ": "tests/integration/test_promotion.py commits",
    "git switch ": "git's own, and the tests have one branch",
    "git clone ": "needs the network",
    "git push": "needs a remote of git",
    "git pull": "needs a remote of git",
    "pip install ": "needs the package index",
    "export MLFLOW_TRACKING_": "needs a server; tests/integration/test_runs.py sets it",
    "export PREFECT_SERVER_": "tests/e2e/cluster.py sets it",
    "export PRUNEONCE_": "tests/e2e/test_cluster.py sets them",
    "mlflow ": "needs PostgreSQL, S3 or a browser; tests/e2e/test_workers.py starts a server on sqlite",
    "prefect ": "needs PostgreSQL or other machines; tests/e2e/test_workers.py runs the same programs on one",
    "accelerate launch ": "needs GPUs; tests/integration/test_processes.py starts several processes",
}
# Pages with Python -> the tests that run it.
PYTHON = {
    "docs/deployment.md": [
        "tests/e2e/test_compress.py",
        "tests/integration/test_accelerated.py",
    ],
    "docs/embeddings.md": ["tests/integration/test_kinds.py"],
    "docs/serving.md": ["tests/integration/test_serving.py"],
    "docs/library.md": ["tests/integration/test_packaging.py"],
}


def command_of(start: str) -> str:
    """The one line of the bash blocks that begins so."""
    (found,) = [line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)]
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
        ("reviews", "r8 tweets sentences reviews", ["reviews +train +40 "]),
        ("duplicates", "r8 tweets sentences duplicates", ["duplicates +train +50 "]),
        ("my-model", "r8 tweets sentences", ["Model my-model: 3 layers of 384", r"my-model +\(model\)"]),
        ("bert", "r8 tweets sentences", ["Model bert: 12 layers of 768", r"prunable: 84\.93 M"]),
    ],
)
def test_a_profile_of_the_pages_is_planned_as_it_was_pasted(project, profile, tasks, says):
    assert set(SAVED) == {f"profiles/{name}.yaml" for name in ("reviews", "duplicates", "my-model", "bert")}
    planned = page(profile)
    assert f"\nTasks: {tasks}\n" in planned
    for line in says:
        assert re.search(line, planned), line


def test_a_profile_leaves_an_inherited_task_out_by_null(project):
    (project / "profiles/fewer.yaml").write_text("extends: reviews\ntasks:\n  r8: null\n")
    assert "\nTasks: tweets sentences reviews\n" in page("fewer")


def test_the_pages_show_what_their_commands_print(tmp_path, monkeypatch):
    """With the results that git has: a run of the reader's own changes them, and is no fault of a page."""
    project = copy_project(tmp_path / "project")
    subprocess.run(
        f"git archive HEAD data study params.yaml dvc.lock | tar -x -C {project}", shell=True, cwd=ROOT, check=True
    )
    monkeypatch.chdir(project)
    monkeypatch.setattr(scale, "facts", cache(scale.facts))
    shown: list[str] = []

    def printed(command: str) -> str:
        shown.append(command)
        if command.startswith("pruneonce plan "):  # as the command does, without its imports once more
            assert command == command_of("pruneonce plan bert")
            return "\n".join(plan_page.lines("bert-base-90", costs.Rate(gpus=8, tflops=100.0, tokens=None)))
        if command.startswith("python -m docs.scale ") and not command.endswith(" bytes"):  # one of them as it stands
            return "\n".join(scale.PARTS[command.split()[-1]]())
        return write.output(command, project)

    different = write.differences(project, printed)
    assert [line for path, text in different.items() for line in write.difference(path, text)] == [], "run `make docs`"
    assert len(shown) >= 7
    assert sum(text.count("\n<!-- command:") for text in PAGES.values()) == len(shown), "a command without an end"


def test_a_page_that_differs_is_shown_and_written(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "README.md"
    page.write_text("<!-- command: echo one -->\nold\n<!-- end -->\n")
    run = partial(write.output, root=tmp_path)
    new = write.differences(tmp_path, run)
    assert new == {page: "<!-- command: echo one -->\n\n```text\none\n```\n\n<!-- end -->\n"}
    assert "-old" in list(write.difference(page, new[page]))
    page.write_text(new[page])
    assert write.differences(tmp_path, run) == {}
    page.write_text(new[page].replace("echo one", "exit 3"))
    with pytest.raises(SystemExit, match=r"expected output of 'exit 3', found exit code 3"):
        write.differences(tmp_path, run)


def test_every_key_of_params_yaml_has_a_meaning():
    rows = re.findall(r"^\| (`[^|]+`) \| .* \| *(.*?) *\|$", PAGES["docs/configuration.md"], re.MULTILINE)
    assert len(rows) >= 150
    assert [key for key, meaning in rows if not meaning] == [], "a comment beside the field in pipeline/params/"


def test_the_readme_is_one_page_with_headings():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 150
    assert [line for text in PAGES.values() for line in text.splitlines() if line.startswith("**")] == []


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_within_the_project_leads_to_a_file_and_a_heading():
    links = [(page, *link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", text)]
    for page, target, heading in links:
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not heading or heading in anchors(path.read_text()), f"{page}: {target}#{heading}"
    assert len(links) >= 40


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", PAGES["README.md"]))
    assert linked == set(PAGES) - {"README.md"}


def test_the_glossary_names_code_that_is_there():
    rows = re.findall(r"^\| .* \| (.*?) in `([^`]+)` \|$", PAGES["docs/glossary.md"], re.MULTILINE)
    assert len(rows) == PAGES["docs/glossary.md"].count("\n| ") - 1
    for names, path in rows:
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} in {path}"


def test_every_bash_block_is_run_in_order_and_every_python_block_by_its_tests():
    with_bash = {page for page in PAGES if blocks("bash", page)}
    assert with_bash == {*IN_ORDER, "docs/workers.md"}
    assert {page for page in PAGES if blocks("python", page)} == set(PYTHON)
    for page, tests in PYTHON.items():
        assert all(page in (ROOT / test).read_text() for test in tests), page


COMMAND = re.compile(r"(make|python|dvc|pruneonce|git|mlflow|prefect|pip|accelerate|export|source) ")


def in_sentences() -> list[str]:
    """Every command within a sentence or an sh block, each once."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += [code for page in PAGES for code in inline(page)]
    return list(dict.fromkeys(line for line in lines if COMMAND.match(line)))


def settings(words: list[str]) -> tuple[str | None, list[str]] | None:
    """(profile, overrides) of a command that runs the pipeline, else None. Fails where make knows no such target."""
    if words[0] == "make":
        env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        said = subprocess.run(["make", "-n", "-o", "install", *words[1:]], env=env, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        words = shlex.split(said.stdout) if "flows.compress" in said.stdout else []
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--profile")
    parser.add_argument("--pipeline")
    parser.add_argument("--set", "-S", action="append", default=[])
    found, _ = parser.parse_known_args(words)
    return (found.profile, found.set) if found.profile or found.set else None


def test_commands_within_sentences_name_targets_profiles_and_parameters_that_are_there(project):
    to_try = [shlex.split(command, comments=True) for command in in_sentences() if not_run(command) is None]
    asked = [found for words in to_try if (found := settings(words))]
    for profile, overrides in asked:
        shutil.copy(ROOT / "params.yaml", project)
        profiles.select(profile, overrides)
    assert len(asked) >= 8


def not_run(command: str) -> str | None:
    """The entry of NOT_RUN that a command begins with."""
    return next((start for start in NOT_RUN if command.startswith(start)), None)


def test_every_other_command_within_a_sentence_is_one_that_its_program_knows():
    """`make`, and the flow, are above. The rest has a reason."""
    known = write.output("python -m pruneonce.command --help", ROOT)
    reasons = set()
    for command in in_sentences():
        words = shlex.split(command)
        if reason := not_run(command):
            reasons.add(reason)
        elif words[0] == "dvc":
            get_main_parser().parse_args(words[1:])  # raises DvcParserError
        elif words[0] == "pruneonce":
            assert words[1] == "--help" or re.search(rf"^ +{words[1]}\b", known, re.MULTILINE), command
        elif words[0] == "python":
            path = ROOT / words[2].replace(".", "/")
            assert words[1] == "-m", command
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), command
        else:
            assert words[0] == "make", command
    assert reasons == set(NOT_RUN), "a reason without a command"


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
    for command in (identity, "dvc init -q", "git add -A", "git commit -qm dvc", command_of("dvc exp run")):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    show = command_of("dvc exp show")
    piped = subprocess.run(["bash", "-c", show], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    for said in (piped, terminal(show, tmp_path, columns=80)):
        header, _, first, *_ = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.strip().splitlines()]
        assert header == ["Experiment", "r8.int8", "tweets.int8", "sparsify.sparsity"]
        assert first == ["workspace", "0.9731", "0.9502", "0.9"]
