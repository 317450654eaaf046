"""The disk is full while a checkpoint, an out, DVC's cache or MLflow's database is written. Then there is room again."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ruamel.yaml import YAML

from tests.faults.case import Case
from tests.faults.ground import Copy, Ground, wait
from tests.faults.kills import Watched

STAGE, NEXT = "sparsify", "teach_task@topic"
MEGABYTES = 24


class Disk:
    """A file system of its own in the place of a folder, with what the folder held."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fill(self, *, room: int = 0) -> None:
        """Leave so many bytes free."""
        with suppress(OSError), (self.folder / "fill").open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        if room:
            with (self.folder / "fill").open("r+b") as file:
                file.truncate(max(0, (self.folder / "fill").stat().st_size - room))

    def free(self) -> None:
        (self.folder / "fill").unlink(missing_ok=True)


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    """Mount one. Raises CalledProcessError where that is not permitted."""
    aside = folder.with_name(f"{folder.name}.aside")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)], check=True)
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True, symlinks=True)
        yield Disk(folder)
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside, symlinks=True, ignore=shutil.ignore_patterns("fill"))
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


def suite(ground: Ground) -> Iterator[Case]:
    for number, (name, what) in enumerate(CASES.items()):
        copy = ground.copy(f"disk-{number}", STAGE, NEXT)
        lost = what(copy)
        yield Case(
            "disk", name, (*lost, *copy.different(STAGE, NEXT), *copy.tracked_badly(STAGE), *copy.tracked_badly(NEXT))
        )


def checkpoint(copy: Copy) -> list[str]:
    """The training goes on, and says so once."""
    with disk(copy.folder / ".pruneonce") as small:
        small.fill(room=100_000)
        done = copy.run(*copy.command("dvc", STAGE))
        said = done.stdout.count("expected room to save a state")
        return _unless(done.returncode == 0 and said == 1, f"said {said} times", done) + _then(copy, NEXT)


def out(copy: Copy) -> list[str]:
    with disk(copy.folder / "data/sparsify") as small:
        small.fill(room=20_000)
        done = copy.run(*copy.command("dvc", STAGE))
        lost = _one_line(done)
        small.free()
        return lost + _then(copy, STAGE, resumed=True) + _then(copy, NEXT)


def cache(copy: Copy) -> list[str]:
    """DVC ends with success, though its cache lacks some; the flow says so. Then they are stored, not computed again."""
    watched = Watched(copy, STAGE)
    with disk(copy.folder / ".dvc/cache") as small:
        for object in objects(copy, STAGE):
            object.unlink(missing_ok=True)
        runner = copy.start(*copy.command("flow", STAGE))
        wait(lambda: len(watched.steps()) >= 10 or runner.poll() is not None)
        small.fill()
        done = subprocess.CompletedProcess([], runner.wait(900), copy.said())
        lost = _unless(done.returncode == 1 and "Is the disk full?" in done.stdout, "no line", done)
        small.free()
        again = copy.run(*copy.command("flow", STAGE))
        lost += _unless(again.returncode == 0 and f"{STAGE}: unchanged (now in DVC's cache too)" in again.stdout, "", again)
    missing = [path for path in objects(copy, STAGE) if not path.exists()]
    return lost + [f"DVC's cache lacks {path}" for path in missing]


def objects(copy: Copy, stage: str) -> list[Path]:
    """The files of DVC's cache that hold the outs of a stage in the run without a fault."""
    found, root = [], copy.folder / ".dvc/cache/files/md5"
    reference = copy.ground.project / ".dvc/cache/files/md5"
    for entry in YAML(typ="safe").load(copy.ground.project / "dvc.lock")["stages"][stage]["outs"]:
        digest = entry["md5"]
        found.append(root / digest[:2] / digest[2:])
        if digest.endswith(".dir"):
            listed = json.loads((reference / digest[:2] / digest[2:]).read_text())
            found += [root / file["md5"][:2] / file["md5"][2:] for file in listed]
    return [path for path in found if (reference / path.relative_to(root)).exists()]


def database(copy: Copy) -> list[str]:
    """What MLflow's database does not take is kept, and sent by the next stage."""
    with disk(copy.folder / "mlflow") as small:
        shutil.copy(copy.base, small.folder / "mlflow.db")
        copy.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{small.folder}/mlflow.db"
        watched = Watched(copy, STAGE)
        runner = copy.start(*copy.command("dvc", STAGE))
        wait(lambda: len(watched.steps()) >= 10 or runner.poll() is not None)
        small.fill()
        code = runner.wait(900)
        lost = [f"the stage ended with {code}: {copy.said()[-400:]}"] if code else []
        small.free()
        lost += _then(copy, NEXT)
    copy.base = copy.folder / "mlflow/mlflow.db"
    return lost


def database_at_the_start(copy: Copy) -> list[str]:
    with disk(copy.folder / "mlflow") as small:
        shutil.copy(copy.base, small.folder / "mlflow.db")
        copy.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{small.folder}/mlflow.db"
        small.fill()
        done = copy.run(*copy.command("dvc", STAGE))
        lost = _unless(bool(done.returncode) and done.stdout.count("TrackerUnreachable") == 1, "no one line", done)
        small.free()
        lost += _then(copy, STAGE) + _then(copy, NEXT)
    copy.base = copy.folder / "mlflow/mlflow.db"
    return lost


def scratch_from_the_start(copy: Copy) -> list[str]:
    with disk(copy.folder / ".pruneonce") as small:
        small.fill()
        done = copy.run(*copy.command("dvc", STAGE))
        lost = _one_line(done) if done.returncode else []
        small.free()
        return lost + _then(copy, STAGE) + _then(copy, NEXT)


def _one_line(done: subprocess.CompletedProcess[str]) -> list[str]:
    said = done.stdout.count("disk is full") + done.stdout.count("to write in, found: [Errno 28]")
    return _unless(bool(done.returncode) and said == 1 and "Traceback" not in done.stdout, f"{said} lines say it", done)


def _then(copy: Copy, stage: str, *, resumed: bool = False) -> list[str]:
    steps = max(Watched(copy, stage).steps(), default=0)
    done = copy.run(*copy.command("dvc", stage))
    begun_again = resumed and steps and " 0/" in done.stdout.partition("step/s")[0][-80:]
    return _unless(done.returncode == 0 and not begun_again, "then", done)


def _unless(good: bool, what: str, done: subprocess.CompletedProcess[str]) -> list[str]:
    return [] if good else [f"{what}; ended with {done.returncode}: {done.stdout[-500:]}"]


CASES: dict[str, Callable[[Copy], list[str]]] = {
    "full when a checkpoint is saved": checkpoint,
    "full when an out is saved": out,
    "full when DVC stores an out in its cache": cache,
    "full when MLflow's database is written": database,
    "MLflow's database on a full disk from the start": database_at_the_start,
    "scratch folder on a full disk from the start": scratch_from_the_start,
}
