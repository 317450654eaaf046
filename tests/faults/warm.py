"""Starts commands of the project in milliseconds: one process imports everything once, and forks for each of them.

A stage spends some 8 s of processor time on imports, and a suite starts hundreds of stages. `python -m tests.faults.warm
SOCKET` listens; the program that `shim` writes stands in the place of `python` and `dvc`, hands its words, its folder, its
environment and its open files over, and ends as the forked process ends. Other programs are run as ever.
"""

import contextlib
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

CLOCK = "FAULTS_CLOCK"  # variable of a command: the seconds by which its clock jumps
SHIM = """#!{python} -IS
import json, os, signal, socket, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
if words[0] == "python" and not (words[1:2] == ["-m"] and words[2:] and words[2].startswith(("stages.", "flows.compress"))):
    os.execv({python!r}, [{python!r}, *words[1:]])
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


def shim(folder: Path, address: Path) -> None:
    """Write the programs `python` and `dvc`, which ask the server at this address."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "dvc"):
        (folder / name).write_text(SHIM.format(python=sys.executable, address=str(address)))
        (folder / name).chmod(0o755)


def main() -> None:
    """Import, listen, and fork for every request, until the standard input is closed."""
    address, programs = Path(sys.argv[1]), Path(sys.argv[2])
    given = dict(os.environ)
    _import()
    own = {name: value for name, value in os.environ.items() if name not in given}  # defaults that modules set
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(address))
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve one request
    print("ready", flush=True)
    while True:
        request, _ = server.accept()
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(request, programs, own)
        request.close()


def _import() -> None:

    from stages import finetune, prepare_teacher, quantize, sparsify, teach_task  # noqa: F401


def _serve(request: socket.socket, programs: Path, own: dict[str, str]) -> None:
    """Fork the command, tell its number and how it ended; end without it when who asked has died."""
    head, files, _, _ = socket.recv_fds(request, 8, 3)
    reader = request.makefile("rb")
    asked = json.loads(reader.read(int.from_bytes(head, "big")))
    child = os.fork()
    if child == 0:
        request.close()
        _become(asked, files, programs, own)
    for file in files:
        os.close(file)
    signal.signal(signal.SIGIO, lambda *_: None)
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
    time.time = lambda: real() + next(turn)  # type: ignore[assignment]
    time.time_ns = lambda: int(time.time() * 1e9)  # type: ignore[assignment]


def _become(asked: dict, files: list[int], programs: Path, own: dict[str, str]) -> None:
    """Be the command: its words, folder, environment, files."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(own | asked["environment"])
    sys.executable = str(programs / "python")
    if offsets := os.environ.get(CLOCK):
        jump(offsets)
    program, *words = asked["words"]
    code: object = 0
    try:
        if program == "dvc":
            from dvc.cli import main as dvc

            sys.argv = ["dvc", *words]
            code = dvc(words)
        else:
            sys.argv = [words[1], *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
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
    import atexit

    atexit._run_exitfuncs()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
