"""The fuzzer itself: what it calls bad, and that it outlives what it finds. The kept seeds, played again."""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pruneonce.deployment import packing, unpacking
from pruneonce.errors import DataError, ModelError, PackError
from tests.fuzz import case, coverage_guided, packed_target, workers
from tests.fuzz.case import Verdict
from tests.fuzz.targets.onnx_file import WHOLE

ROOT = Path(__file__).parents[2]


def fails(folder: Path) -> None:
    raise ValueError("ours to say")


def says(folder: Path) -> None:
    raise DataError("expected a, found b.")


def says_two_lines(folder: Path) -> None:
    error = DataError("x")
    error.args = ("one\ntwo",)
    raise error


def hangs(folder: Path) -> None:
    time.sleep(60)


def leaves(folder: Path) -> None:
    (folder / "out").write_text("half")
    raise DataError("expected a, found b.")


def leaves_a_part(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep/out.part").touch()


def escapes(folder: Path) -> None:
    (folder.parent / "elsewhere").touch()


def exits(folder: Path) -> None:
    sys.exit("no word of ours")


def takes_memory(folder: Path) -> None:
    bytearray(8 << 30)


def dies(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deaf(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)


def fine(folder: Path) -> None:
    assert Path("in").read_bytes() == b"x"


def as_target(run: Any) -> Any:
    return SimpleNamespace(run=run, OUTS=("out",), SECONDS=0.5, SHARE=1)


VERDICTS = {
    fine: Verdict(True, "done"),
    says: Verdict(True, "DataError"),
    fails: Verdict(False, "ValueError from tests/unit/test_fuzz.py in fails"),
    says_two_lines: Verdict(False, "DataError of several lines, or too long"),
    hangs: Verdict(False, "not done in 0.5 s"),
    leaves: Verdict(False, "after an error there is ['out']"),
    leaves_a_part: Verdict(False, "left over: ['out.part']"),
    escapes: Verdict(False, "written outside: ['elsewhere']"),
    exits: Verdict(False, "SystemExit from tests/unit/test_fuzz.py in exits"),
}


@pytest.mark.parametrize("run", VERDICTS, ids=lambda run: run.__name__)
def test_what_is_bad(run, tmp_path):
    assert case.judge(as_target(run), {"in": b"x"}, tmp_path) == VERDICTS[run]
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_hangs_or_takes_all_memory_is_begun_again(monkeypatch):
    runs = {"fine": fine, "memory": takes_memory, "dies": dies, "deaf": deaf, "fails": fails}
    monkeypatch.setattr(workers.case, "target", lambda name: as_target(runs[name]))
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.5)
    names = ["fine", "memory", "fine", "dies", "fine", "deaf", "fine", "fails"]
    tasks = [workers.Task(name, number, {"in": b"x"}) for number, name in enumerate(names)]
    found = {task.number: verdict for task, verdict, _ in workers.judged(tasks, seed=1, processes=2)}
    assert [found[number].good for number in range(8)] == [name == "fine" for name in names]
    assert found[1].what == "MemoryError from tests/unit/test_fuzz.py in takes_memory"
    assert found[3].what == "the process died (exit code -9)"
    assert found[5].what == "hangs where no signal reaches it"


FENCED = """
import os, shutil, sys, tempfile
from pathlib import Path
from tests.fuzz import fence

inside, outside = map(Path, sys.argv[1:])
os.chdir(inside)
(inside / "link").symlink_to(outside / "kept")
(inside / "up").symlink_to(outside)
fence.build(inside)
for good in (
    lambda: (inside / "a").write_text("x"),
    lambda: Path("b/c").mkdir(parents=True),
    lambda: Path("a").rename("b/d"),
    lambda: open(os.devnull, "w").close(),
    lambda: shutil.rmtree("b"),
    lambda: (outside / "kept").read_text(),
):
    good()
for bad in (
    lambda: (outside / "x").write_text("x"),
    lambda: (inside / "link").write_text("x"),
    lambda: Path("../outside/x").open("ab"),
    lambda: (outside / "kept").unlink(),
    lambda: (inside / "link").replace(outside / "kept"),
    lambda: (outside / "kept").rename("here"),
    lambda: Path("up/new").mkdir(),
    lambda: Path("up/new").symlink_to("x"),
    lambda: os.link("link", outside / "new"),
    lambda: os.chmod("link", 0),
    lambda: os.truncate("link", 0),
    lambda: shutil.rmtree(outside),
):
    try:
        bad()
    except fence.Outside:
        continue
    sys.exit("not stopped")
Path("link").unlink()  # the link itself is inside
print("stopped", end="")
"""


def test_a_fence_stops_what_would_be_written_outside(tmp_path):
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    command = [sys.executable, "-c", FENCED, str(tmp_path / "inside"), str(tmp_path / "outside")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("stopped", "")
    assert [(path.name, path.read_text()) for path in (tmp_path / "outside").iterdir()] == [("kept", "kept")]


@pytest.mark.parametrize("raw", [b"", b"text\n", b"\xff\0\x01", "ü".encode(), b"x" * 9000, b"\r\n"])
def test_a_case_is_written_and_read_back(raw):
    files = {"a/b": raw, "c": b"1"}
    text = case.to_json("rows", files, "why")
    assert case.from_json(text) == ("rows", files)
    assert len(text) < 9000


def cases_made() -> dict[str, str]:
    """Target -> the md5 of its first cases of a seed, which are not all alike."""
    digests = {}
    for name in case.names():
        module = case.target(name)
        assert module.__doc__
        assert callable(module.run)
        assert isinstance(module.OUTS, tuple)
        assert module.SECONDS <= 30
        assert module.SHARE > 0
        getattr(module, "start", lambda: None)()
        made = [case.make(name, 3, number) for number in range(30)]
        assert len({repr(files) for files in made}) > 3
        digests[name] = hashlib.md5(repr(made).encode()).hexdigest()
    return digests


@pytest.mark.filterwarnings("ignore")  # MLflow's, where a target is imported
def test_every_target_makes_the_same_cases_of_the_same_seed():
    """In another process with another hash seed, too: a case is found again by its numbers."""
    program = "import json; from tests.unit import test_fuzz; print(json.dumps(test_fuzz.cases_made()))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    quiet = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
    command = [sys.executable, "-W", "ignore", "-c", program]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **quiet}, stdout=subprocess.PIPE, text=True) as other:
        made = cases_made()
        said = other.communicate(timeout=300)[0]
    assert json.loads(said.splitlines()[-1]) == made
    assert len(made) == 21


def test_what_failed_once_is_good_now():
    """Every kept seed through the command; a worker each, with bounded time and memory."""
    kept = len(list(case.SEEDS.glob("*.json")))
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "0", "--processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^{kept} cases, 0 bad, ", done.stdout, re.MULTILINE), done.stdout
    assert kept >= 27


def test_a_seed_is_small():
    assert max(path.stat().st_size for path in case.SEEDS.glob("*.json")) < 10_000


class TestCoverageGuided:
    """The target of the fuzzer that looks for new paths, without that fuzzer."""

    PACKED = b"".join(packing.packed(io.BytesIO(WHOLE)))

    def test_a_whole_file_answers_or_is_one_error(self, tmp_path):
        with pytest.raises(ModelError, match="expected inputs that the model can read"):  # it multiplies floats
            packed_target.read(self.PACKED, tmp_path)
        assert (tmp_path / "model.onnx").read_bytes() == WHOLE

    def test_what_is_bad_is_noted_once_a_kind(self, tmp_path, monkeypatch):
        found, folder = tmp_path / "found", tmp_path / "folder"
        found.mkdir()
        folder.mkdir()

        def fails(data, folder):
            raise ValueError

        packed_target.one_input(b"x", folder, found)  # a PackError
        assert list(found.iterdir()) == []
        monkeypatch.setattr(packed_target, "read", fails)
        for data in (b"first", b"second"):
            packed_target.one_input(data, folder, found)
        (note,) = found.glob("*.json")
        assert note.with_suffix(".packed").read_bytes() == b"first"
        assert "ValueError" in note.read_text()

    def test_half_of_the_changes_are_whole_packed_files(self):
        """Else a checksum would stop nearly all of them before a model is read."""
        made = [packed_target.mutated(self.PACKED, 1 << 20, seed, lambda data, most: data[::-1]) for seed in range(60)]
        whole = 0
        for data in made:
            with contextlib.suppress(PackError):
                b"".join(unpacking.unpacked(io.BytesIO(data)))
                whole += 1
        assert 25 <= whole <= 40
        assert len(set(made)) > 30

    def test_without_atheris_one_line_says_how_to_get_it(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["coverage_guided"])
        monkeypatch.setattr(coverage_guided.importlib.util, "find_spec", lambda name: None)
        coverage_guided.main()
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith("atheris is not installed. Get it: .venv/bin/pip install 'atheris>=3,<4'")
