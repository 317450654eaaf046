"""Starts the project's commands in less than a second: one process imports the libraries once, and forks for each.

A stage spends 7 to 13 s of processor time on imports of PyTorch, transformers and MLflow, and a suite starts hundreds of
stages. The project's own code is imported by each fork, from its own folder. `programs` writes the programs `python` and
`dvc`: each hands its words, its folder, its environment and its open files to that process, and ends as the fork ends.
"""

import atexit
import contextlib
import functools
import importlib
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil

CLOCK = "FAULTS_CLOCK"  # variable of a command: the seconds by which its clock jumps
COLD = "cold"  # a file beside the programs: while it is there, every command starts as it does for users
# Their modules read the environment or the folder while they are imported: each fork imports them itself.
OURS = ("pruneonce", "pipeline", "stages", "flows", "study", "benchmarks", "docs", "kernels")
NOT_BEFORE_THE_FORK = ("prefect", *OURS)
# An export imports a part of PyTorch late.
LOADED = """
import contextlib, importlib, io, logging, sys, warnings
for name in ("teach_task", "sparsify", "prepare_corpus", "export", "evaluate", "report"):
    importlib.import_module(f"stages.{name}")
import datasets, dvc.cli, dvc.commands.repro, dvc.repo, flows.compress, torch
warnings.simplefilter("ignore")
logging.disable()
with contextlib.redirect_stdout(io.StringIO()):
    torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(1, 1),), dynamo=True)
print(*sys.modules, sep="\\n")
"""
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
words, here = [os.path.basename(sys.argv[0]), *sys.argv[1:]], {programs!r}
modules = ("stages.", "flows.compress", "flows.sweep", "pipeline.cli", "prefect.engine", "pruneonce.deployment.memory")
own = words[0] == "dvc" or words[1:2] == ["-m"] and words[2].startswith(modules) or words[1:] and words[1].endswith(".py")
if os.path.exists(os.path.join(here, {cold!r})) or not own:
    program = ["-m", "dvc"] if words[0] == "dvc" else []
    os.execv({python!r}, [{python!r}, *program, *words[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps({{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode()
socket.send_fds(server, [len(said).to_bytes(8, "big")], [0, 1, 2])
server.sendall(said)
reply = server.makefile("rb")
child = int(reply.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(child, number))
status = int(reply.readline() or -9)
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
# A program that is started as it is for users starts others by these names, too.
SITE = "import sys\nsys.executable = {python!r}\n"


def programs() -> Path:
    """The folder of `python`, `dvc` and `sitecustomize.py`, for PATH and PYTHONPATH."""
    return _server()[0]


def first(path: str) -> str:
    """A PATH on which the programs come before those of this one."""
    return os.pathsep.join([str(programs()), path])


def processes() -> list[psutil.Process]:
    """All that the programs have started, and those that wait for it."""
    return psutil.Process(_server()[1].pid).children(recursive=True)


@functools.cache
def _server() -> tuple[Path, subprocess.Popen[bytes]]:
    """The programs' folder, and the process that they ask. It is started once."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    text = SHIM.format(python=sys.executable, programs=str(folder), address=str(folder / "socket"), cold=COLD)
    for name in ("python", "dvc"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "sitecustomize.py").write_text(SITE.format(python=str(folder / "python")))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", str(folder)],
        cwd=Path(__file__).parents[1],
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},  # read while the libraries are imported
        stdin=subprocess.PIPE,  # it ends with its standard input: with this process
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", "the process that forks has not started"
    return folder, server


def main() -> None:
    """Import, listen, and fork for every request, until the standard input is closed."""
    folder = Path(sys.argv[1])
    given, path = dict(os.environ), sys.path[1:]
    for name in subprocess.run([sys.executable, "-c", LOADED], stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        if name.partition(".")[0] not in (*NOT_BEFORE_THE_FORK, "__main__"):
            with contextlib.suppress(Exception):  # a part of a module that only its package imports
                importlib.import_module(name)
    own = {name: value for name, value in os.environ.items() if name not in given}  # defaults that modules set
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve one request
    print("ready", flush=True)
    while server in select.select([server, sys.stdin], [], [])[0]:
        request, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(request, folder, own, path)
        request.close()


def _serve(request: socket.socket, programs: Path, own: dict[str, str], path: list[str]) -> None:
    """Fork the command, tell its number and how it ended; end without it when who asked has died."""
    head, files, _, _ = socket.recv_fds(request, 8, 3)
    reader = request.makefile("rb")
    asked = json.loads(reader.read(int.from_bytes(head, "big")))
    child = os.fork()
    if child == 0:
        request.close()
        _become(asked, files, programs, own, path)
    for file in files:
        os.close(file)
    request.sendall(f"{child}\n".encode())
    gone = os.fork()
    if gone == 0:  # watches who asked: its end ends the parent of the command, as the end of a shell would
        reader.read(1)
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.kill(gone, signal.SIGKILL)
    with contextlib.suppress(OSError):
        request.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def jump(offsets: str) -> None:
    """Let the clock jump: at every call of `time.time` the next of these seconds is added. Nobody sets the monotonic one."""
    real, turn = time.time, itertools.cycle(map(float, offsets.split()))
    time.time = lambda: real() + next(turn)
    time.time_ns = lambda: int(time.time() * 1e9)


def _become(asked: dict, files: list[int], programs: Path, own: dict[str, str], path: list[str]) -> None:
    """Be the command: its words, folder, environment, files, path of modules."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(own | asked["environment"])
    program, *words = asked["words"]
    sys.executable, sys.orig_argv = str(programs / "python"), asked["words"]
    scripts = str(programs) if program == "dvc" else asked["folder"]
    sys.path[:] = [scripts, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    if offsets := os.environ.get(CLOCK):
        jump(offsets)
    code: object = 0
    try:
        if program == "dvc":
            from dvc.cli import main as dvc

            sys.argv = ["dvc", *words]
            code = dvc(words)
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
