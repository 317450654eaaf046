"""The command `pruneonce`: files are packed and accelerated anywhere, a project's commands start in its folder."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import pruneonce
from pipeline import cli
from pruneonce import command, commandline, projects
from pruneonce.commands import pack
from pruneonce.deployment import execution, inspect, packing

ROOT = Path(__file__).parents[2]
OUT = {"accelerate": ["out.onnx"]}  # further words that a command needs
COMMAND = [sys.executable, "-m", "pruneonce.command"]
# Unbuffered, argparse itself meets the end of a pipe in --help, and says nothing of it.
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "PYTHONPATH": str(ROOT)}


class Started(Exception):
    """Another program took the place of this process."""


def start(program, line):
    raise Started(line)


@pytest.fixture
def call(monkeypatch, capsys):
    """words -> (exit code, standard output, standard error) of the command in this process."""

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
        monkeypatch.setattr(os, "execv", start)
        try:
            command.main()
        except SystemExit as ended:
            return (ended.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(empty) -> Path:
    """A clone."""
    (empty / "pipeline").mkdir()
    for file in projects.CLONE:
        (empty / file).touch()
    return empty


@pytest.fixture
def own(empty, monkeypatch) -> Path:
    """A project of `pruneonce init`."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
    (empty / "dvc.yaml").touch()
    (empty / "params.yaml").write_text(f'# Numbers.\npruneonce: "{projects.installed()}"  # the version\nlauncher: python\n')
    return empty


@pytest.mark.parametrize("word", ["pack", "unpack", "inspect", "accelerate"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "PackError: expected a file at ., found a folder."),
        (".", "PackError: expected a file at ., found a folder."),
        ("/", "PackError: expected a file at /, found a folder."),
        ("..", "PackError: expected a file at .., found a folder."),
        ("a\0b", "PackError: expected a file at a b, found none: "),
        ("x" * 300, "Error: expected "),
        ("x" * 5000, "Error: expected "),
        ("nowhere/x", "PackError: expected a file at nowhere/x, found none"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(call, empty, word, name, message):
    code = call(word, name, *OUT.get(word, ()))[0]
    assert message in code
    assert "\n" not in code
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("word", ["pack", "unpack", "inspect", "accelerate"])
def test_a_pipe_is_not_waited_for(call, empty, word):
    os.mkfifo("pipe")
    assert "Error: expected a file at pipe, found a device or a pipe." in call(word, "pipe", *OUT.get(word, ()))[0]


def test_help_lists_both_kinds_of_commands(call, empty):
    """What it says of a project's commands is what the project says."""
    code, said, _ = call("--help")
    assert code == 0
    for name in commandline.LIBRARY:
        assert re.search(rf"^ +{name}\s+\w", said, re.MULTILINE)
    of_project = {commandline.name_of(module): commandline.purpose(module) for module in cli.COMMANDS}
    assert len(of_project) >= 3
    library = {commandline.name_of(module): commandline.purpose(module) for module in command.COMMANDS}
    assert {name: library[name] for name in command.WIDER} == {name: of_project[name] for name in command.WIDER}
    assert of_project == command.PROJECT_COMMANDS | {name: of_project[name] for name in command.WIDER}
    assert all(re.search(rf"^    {name} +{re.escape(line)}$", said, re.MULTILINE) for name, line in of_project.items())


def test_every_command_has_examples_that_it_knows(call, empty):
    assert tuple(map(commandline.name_of, command.COMMANDS)) == commandline.LIBRARY
    for modules, parser in ((command.COMMANDS, command._parser()), (cli.COMMANDS, cli._parser())):
        for module in modules:
            assert 1 <= len(module.EXAMPLES) <= 3, module
            for example in module.EXAMPLES:
                (line,) = re.findall("pruneonce ([^>)#]*)", example)
                assert parser.parse_args(shlex.split(line)).command == commandline.name_of(module)
    said = call("pack", "--help")[1]
    assert said.endswith("examples:\n" + "".join(f"    {example}\n" for example in pack.EXAMPLES))


def test_the_exit_codes_are_said_where_the_commands_are(call, empty):
    assert commandline.EXIT_CODES in call("--help")[1]
    assert call("--version")[1] == f"pruneonce {metadata.version('pruneonce')}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-x"],
        ["--", "plan"],
        ["pack"],
        ["pack", "a", "b", "c"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--execution", "fast"],
        ["inspect", "a", "--threads", "-1"],
        ["accelerate", "a", "b", "--threads", "two"],
        ["accelerate", "a"],
        ["accelerate", "a", "b", "--execution", "stock"],
    ],
)
def test_a_wrong_use_is_shown_the_right_one(call, project, words):
    code, _, said = call(*words)
    assert code == 2
    assert said.startswith("usage: pruneonce ")


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "tiny", "--gpus", "8"],
        ["trace", "a b"],
        ["plan", "--help"],
        ["of-this-project"],
        ["doctor", "--json"],
        ["completion", "bash"],
    ],
)
def test_another_command_becomes_the_projects(monkeypatch, project, words):
    monkeypatch.setattr(projects, "root", project.resolve)  # the clone that this package is installed from
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
    with pytest.raises(Started) as started:
        command.main()
    assert started.value.args[0] == [sys.executable, "-m", "pipeline.cli", *words]


@pytest.mark.parametrize("words", [["plan"], ["run", "--set", "a=b"], ["init", "x"]])
def test_in_a_project_of_init_the_packages_own_code_runs(monkeypatch, own, words):
    """Which is not in the folder: it is named by the environment. The folder itself is not searched."""
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
    with pytest.raises(Started):
        command.main()
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(projects.root()) == str(ROOT)
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_another_version_than_params_yaml_names_is_one_line_with_both(call, own):
    (own / "params.yaml").write_text("pruneonce: 9.9.9\n")
    code = call("plan")[0]
    assert code.startswith(
        f"PipelineError: expected pruneonce 9.9.9, which params.yaml names, found {projects.installed()} installed. Install "
        'that one: pip install "pruneonce[pipeline]==9.9.9"; or go over'
    )


def test_init_needs_no_project_and_names_the_extra_that_it_needs(call, empty, monkeypatch):
    monkeypatch.setattr(projects, "installed", lambda: "1.2.3")

    def missing(name):
        raise projects.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(projects.metadata, "version", missing)
    code = call("init", "x")[0]
    assert code.startswith("PipelineError: expected what the project's commands import, found no DVC")
    assert code.endswith('Install it: pip install "pruneonce[pipeline]==1.2.3"')


@pytest.mark.parametrize(
    ("word", "close"),
    [
        ("plam", " Did you mean plan?"),
        ("pck", " Did you mean pack?"),
        ("help", " Did you mean --help?"),
        ("", ""),
        ("new", ""),
        ("\x1b[1mplan", " Did you mean plan?"),
        ("x" * 5000, ""),
    ],
)
def test_an_unknown_word_is_a_wrong_use_and_the_closest_is_named(call, empty, word, close):
    code, _, said = call(word)
    assert code == 2
    usage, line = said.splitlines()
    assert usage.startswith("usage: pruneonce ")
    assert line.startswith(f"pruneonce: error: expected a command of {', '.join(commandline.LIBRARY)}, ")
    assert line.endswith(close)
    assert ("Did you mean" in line) == bool(close)
    assert "\x1b" not in said
    assert len(line) < 500


@pytest.mark.parametrize("word", ["plan", "trace"])
def test_outside_of_a_project_its_commands_are_one_line(call, empty, word):
    code = call(word)[0]
    assert code == (
        f"PipelineError: expected a project's folder for `pruneonce {word}`, a clone or one of `pruneonce init`, found none."
        " Change to one, or make one: pruneonce init FOLDER. Outside of projects there are: "
        f"{', '.join(commandline.LIBRARY)}."
    )


def test_inside_a_projects_folder_the_way_back_is_named(call, project, monkeypatch):
    (project / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(project / "data/raw")
    assert f"found none. Change to {project}, or make one" in call("trace", "x")[0]


def test_without_the_pipelines_packages_the_extra_is_named(call, project, monkeypatch):
    def missing(name):
        raise projects.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(projects.metadata, "version", missing)
    code = call("plan")[0]
    assert code.startswith("PipelineError: expected what the project's commands import, found no DVC")
    assert code.endswith("Install it: make install")


def test_the_librarys_process_becomes_the_projects():
    done = subprocess.run([*COMMAND, "plan", "--help"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--tokens-per-second" in done.stdout


@pytest.mark.parametrize("words", [["completion", "bash"], ["doctor", "--json"], ["predict", "x.onnx", "--text", "a"]])
def test_what_every_shell_may_start_runs_no_code_of_a_folder(project, words):
    """~/.bashrc asks for the completion, and a terminal may open in a clone of anybody's."""
    (project / "pipeline/__init__.py").touch()
    (project / "pipeline/cli.py").write_text('print("foreign")\n')
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"from pruneonce import command; import sys; sys.argv[1:] = {words}; command.main()"],
        cwd=project,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert "foreign" not in done.stdout + done.stderr
    expected = {
        "completion": "_pruneonce_task()",
        "doctor": f"pruneonce is installed from {ROOT}: nothing of the clone was run",
        "predict": "PackError: expected a file at x.onnx, found none",
    }
    assert expected[words[0]] in done.stdout + done.stderr


@pytest.mark.parametrize("word", ["doctor", "completion"])
def test_a_wider_command_is_the_librarys_own_where_a_projects_cannot_run(call, project, monkeypatch, word):
    monkeypatch.setattr(command, "_runs_here", lambda: False)
    assert call(word, "--help")[1].startswith(f"usage: pruneonce {word} ")


@pytest.mark.parametrize("words", [["--help"], ["pack", "model.onnx"]], ids=" ".join)
def test_a_reader_who_leaves_ends_it_quietly(tmp_path, words):
    """As `head` does. A pipe that nobody reads any more, before the first byte."""
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "model.onnx")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_name_that_is_no_text_is_said_as_well_as_can_be(tmp_path):
    """A file's name is bytes: what is no UTF-8 of it is said by its escape, where the terminal is ASCII alone too."""
    done = subprocess.run(
        [*COMMAND, "pack", b"\xff.onnx"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == b"PackError: expected a file at \\udcff.onnx, found none: No such file or directory.\n"


@pytest.fixture
def files(int8_onnx, dense_onnx, empty) -> Path:
    """The current folder, with a model of every kind."""
    shutil.copy(int8_onnx.path, "int8.onnx")
    shutil.copy(dense_onnx.path, "fp32.onnx")
    packing.pack(Path("int8.onnx"), Path("int8.packed"))
    Path("cut.onnx").write_bytes(Path("int8.onnx").read_bytes()[:-7])
    Path("cut.packed").write_bytes(Path("int8.packed").read_bytes()[:-7])
    Path("text.onnx").write_text("hello\n")
    return empty


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pack", "int8.packed"], "expected an ONNX file, found int8.packed, which is packed already."),
        (["pack", "int8.packed", "other"], "expected an ONNX file, found int8.packed, which is packed already."),
        (["unpack", "int8.onnx"], "expected a file that `pruneonce pack` wrote, found one that begins with "),
        (["unpack", "int8.onnx", "other"], "expected a file that `pruneonce pack` wrote, found one that begins with "),
    ],
)
def test_a_file_that_is_in_this_form_already_is_said_to_be(call, files, words, says):
    """Also where the file that would be written is the one that is read."""
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    assert call(*words)[0].startswith(f"PackError: {says}")
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize("file", ["int8.onnx", "int8.packed"])
@pytest.mark.parametrize("how", ["auto", "stock", "sparse"])
def test_inspect_prints_every_matrix(call, files, file, how):
    code, said, errors = call("inspect", file, "--execution", how, "--threads", "2")
    matrices = execution.matrices(files / "int8.onnx", execution=how, threads=2)
    assert (code, errors) == (0, "")
    assert len(matrices) == 12
    for matrix in matrices:
        assert re.search(rf"^{re.escape(matrix.name.removesuffix('.weight'))} .* {matrix.kernel} .*$", said, re.MULTILINE)
    kernels = Counter(matrix.kernel for matrix in matrices)
    kernels["stock"] += 2  # the pooler and the classifier, in float
    assert "\n14 matrices: " + ", ".join(f"{n} {kernel}" for kernel, n in kernels.most_common()) in said
    assert f", {Path('int8.packed').stat().st_size:,} bytes packed\n" in said


def test_inspect_says_the_same_to_a_program(call, files):
    found = json.loads(call("inspect", "int8.packed", "--json")[1])
    assert {layer["name"] for layer in found["layers"] if layer["prunable"]} == set(
        inspect.prunable_weights(files / "int8.onnx")
    )
    assert found["totals"]["sparsity"] == pytest.approx(inspect.sparsity(files / "int8.onnx")["sparsity"])
    assert found["totals"]["bytes"] == Path("int8.onnx").stat().st_size
    assert {layer["kernel"] for layer in json.loads(call("inspect", "fp32.onnx", "--json")[1])["layers"]} == {"stock"}


def test_the_choices_are_those_of_the_library():
    (commands,) = [a for a in command._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    (choices,) = [a.choices for a in commands.choices["inspect"]._actions if "--execution" in a.option_strings]
    assert choices == execution.EXECUTIONS


def test_a_file_without_a_choice_is_described_too(call, files):
    call("accelerate", "int8.onnx", "sparse.onnx", "--execution", "sparse")
    assert call("inspect", "fp32.onnx")[1].count(" stock   float\n") == 14
    assert "operators of the sparse kernels: `pruneonce accelerate` wrote this file" in call("inspect", "sparse.onnx")[1]


@pytest.mark.parametrize("file", ["int8.onnx", "int8.packed"])
def test_an_accelerated_file_is_what_load_runs(call, files, file):
    code, said, errors = call("accelerate", file, "out.onnx", "--execution", "sparse")
    sizes = [Path(name).stat().st_size for name in (file, "out.onnx")]
    assert (code, errors) == (0, "")
    assert said == (f"{file}  {sizes[0]} bytes -> out.onnx  {sizes[1]} bytes; it needs the library {execution.LIBRARY}\n")
    ids = np.full((2, 9), 7)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given = [pruneonce.load("int8.onnx", threads=1, execution="sparse"), pruneonce.load("out.onnx", threads=1)]
    answers = [session.run(["logits"], feeds)[0] for session in given]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fp32.onnx", "out.onnx"], "expected int8 matrices for the sparse kernels in fp32.onnx, found none"),
        (["int8.onnx", "int8.onnx"], "expected to write another file than is read, found int8.onnx for both."),
        (["int8.onnx", "."], "expected to write ., found a folder there."),
        (["int8.onnx", "nowhere/out.onnx"], "expected to write nowhere/out.onnx, found: "),
        (["cut.onnx", "out.onnx"], "expected an ONNX file, found no protobuf"),
        (["cut.packed", "out.onnx"], "expected a whole packed file, found that it ends too early"),
        (["text.onnx", "out.onnx"], "expected an ONNX file, found no protobuf"),
    ],
)
def test_what_cannot_be_accelerated_is_one_line_and_no_file(call, files, words, says):
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    code, said, _ = call("accelerate", *words, "--execution", "sparse")
    assert code.startswith(f"PackError: {says}")
    assert "\n" not in code
    assert said == ""
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize("file", ["cut.onnx", "cut.packed", "text.onnx"])
def test_what_cannot_be_inspected_is_one_line(call, files, file):
    code, said, _ = call("inspect", file)
    assert code.startswith("PackError: expected ")
    assert "\n" not in code
    assert said == ""


def test_without_the_library_inspect_says_so_and_accelerate_refuses(call, files, monkeypatch):
    monkeypatch.setattr(execution, "LIBRARY", files / "kernels.so")
    code, said, _ = call("inspect", "int8.onnx")
    assert code == 0
    assert f"\nno library of the sparse kernels at {files}/kernels.so. Build it: " in said
    assert said.count(" stock   the library of the sparse kernels is not there\n") == 12
    assert call("accelerate", "int8.onnx", "out.onnx")[0].startswith(
        "PackError: expected int8 matrices for the sparse kernels"
    )
    missing = f"KernelsError: expected the library of the sparse kernels at {files}/kernels.so, found none. Build it: "
    assert call("inspect", "int8.onnx", "--execution", "sparse")[0].startswith(missing)
    assert call("accelerate", "int8.onnx", "out.onnx", "--execution", "sparse")[0].startswith(missing)
    assert not Path("out.onnx").exists()
