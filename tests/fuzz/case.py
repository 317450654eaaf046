"""A case: files made by chance, read by a target, judged; and how one is written down, to be tried again."""

import base64
import contextlib
import importlib
import io
import json
import pkgutil
import shutil
import signal
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType, ModuleType

from pruneonce.errors import LONGEST, PruneOnceError
from tests.fuzz import targets

Files = dict[str, bytes]
SEEDS = Path(__file__).with_name("seeds")
ROOT = Path(__file__).parents[2]


class Hang(BaseException):
    """A case that is not done in time. No Exception: nobody catches it."""


@dataclass(frozen=True)
class Verdict:
    """good: a result, or one clear error. what: for a reader; alike for cases that fail alike."""

    good: bool
    what: str


def names() -> list[str]:
    """The targets there are."""
    return sorted(found.name for found in pkgutil.iter_modules(targets.__path__))


def kept() -> list[Path]:
    """The files of the cases that failed once."""
    return sorted(SEEDS.glob("*.json"))


def target(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.targets.{name}")


def make(name: str, seed: int, number: int) -> Files:
    """Case `number` of a target: the same for the same seed."""
    return target(name).make(Random(f"{seed}/{name}/{number}"))


def judge(module: ModuleType, files: Files, base: Path) -> Verdict:
    """Let the target read the files in a new folder below `base`, which is empty before and afterwards."""
    folder = base / "case"
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        with contextlib.chdir(folder), _quiet(), _in_time(module.SECONDS):
            verdict = _run(module, folder)
        strange = [path.name for path in base.iterdir() if path != folder]
        return Verdict(False, f"written outside: {strange}") if strange else verdict
    except Hang:
        return Verdict(False, f"not done in {module.SECONDS} s")
    finally:
        for path in base.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _run(module: ModuleType, folder: Path) -> Verdict:
    try:
        module.run(folder)
        good = Verdict(True, "done")
    except PruneOnceError as error:
        left = [name for name in module.OUTS if _is_there(folder / name)]
        good = Verdict(not left, f"after an error there is {left}" if left else type(error).__name__)
        if "\n" in str(error) or len(str(error)) > LONGEST + 100:
            good = Verdict(False, f"{type(error).__name__} of several lines, or too long")
    except Hang:
        raise
    except BaseException as error:
        return Verdict(False, _place(error))
    # In a scratch folder a part may stay: whoever goes on with it begins it anew, or checks it.
    parts = sorted(path.name for path in folder.rglob("*.part") if "scratch" not in path.relative_to(folder).parts)
    return Verdict(False, f"left over: {parts}") if parts else good


def _is_there(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def _place(error: BaseException) -> str:
    """What was raised, and by which line of ours: cases that fail alike say the same."""
    frames = traceback.extract_tb(error.__traceback__)[-200:]
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and "/tests/fuzz/" not in f.filename]
    where = f"{Path(ours[-1].filename).relative_to(ROOT)} in {ours[-1].name}" if ours else "tests/fuzz"
    return f"{type(error).__name__} from {where}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raises Hang inside, again every second: a finalizer swallows what is raised in it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def to_json(name: str, files: Files, note: str) -> str:
    """A case as text: content as it is where that is text, else packed."""
    content = {path: _readable(raw) for path, raw in files.items()}
    return json.dumps({"target": name, "note": note, "files": content}, indent=1) + "\n"


def _readable(raw: bytes) -> str | dict[str, str]:
    packed = {"zlib": base64.b64encode(zlib.compress(raw, 9)).decode()}
    with contextlib.suppress(UnicodeDecodeError):
        plain = raw.decode()
        return plain if len(plain) < 2 * len(packed["zlib"]) else packed
    return packed


def from_json(text: str) -> tuple[str, Files]:
    """(target, files) as `to_json` wrote them."""
    said = json.loads(text)
    files = {
        path: content.encode() if isinstance(content, str) else zlib.decompress(base64.b64decode(content["zlib"]))
        for path, content in said["files"].items()
    }
    return said["target"], files
