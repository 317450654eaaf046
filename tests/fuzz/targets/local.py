"""Local sources: folders with links, pipes and odd names, copied by their members."""

import json
import os
from pathlib import Path
from random import Random

from pipeline.params.sources import LocalSource
from pipeline.plan import inventory
from pruneonce.errors import PruneOnceError
from pruneonce.sources.local import copy_local
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS = ("out",)
SECONDS = 10.0
SHARE = 12

NAMES = ("train.csv", "test.csv", "deep/er/a.txt", "deep", "b", ".hidden", "x y", "ü", "deep/er")
KINDS = ("file",) * 6 + ("folder", "fifo", "link")
TARGETS = (*NAMES, ".", "..", "/dev/zero", "/proc/self/mem", "nowhere", "../out", "self")
MEMBERS = (
    ".",
    "train.csv",
    "deep",
    "deep/er",
    "..",
    "../out",
    "/nowhere/h",
    "/dev/zero",
    "",
    "b/",
    "nowhere",
    *damage.WORDS,
    "x" * 5000,
)
TO = ("train.csv", ".", "all", "../x", "/nowhere/z", "", "a/b", "a", *damage.WORDS, "y" * 300)


def make(draw: Random) -> Files:
    tree = [[draw.choice(NAMES), draw.choice(KINDS), draw.choice(TARGETS)] for _ in range(draw.randint(0, 6))]
    few = draw.random() < 0.6
    members = {
        draw.choice(TO[:8] if few else TO): draw.choice(MEMBERS[:4] if few else MEMBERS) for _ in range(draw.randint(1, 3))
    }
    path = draw.choice(
        ("source",) * 8 + ("source/train.csv", ".", "", "nowhere", "/dev/zero", "source/b", *damage.WORDS, "x" * 5000)
    )
    sha256 = draw.choice((None, None, None, "0" * 64))
    return {"case.json": json.dumps({"tree": tree, "members": members, "path": path, "sha256": sha256}).encode()}


def run(folder: Path) -> None:
    said = json.loads(Path("case.json").read_text())
    Path("source").mkdir()
    for name, kind, target in said["tree"]:
        _put(Path("source", name), kind, target)
    given = LocalSource.model_construct(path=said["path"], members=said["members"], sha256=said["sha256"])
    try:
        files = inventory._local(given)
    except PruneOnceError:
        files = {}
    copy_local(Path(said["path"]), said["members"], said["sha256"], folder / "out")
    assert all(isinstance(name, str) for name in files)


def _put(path: Path, kind: str, target: str) -> None:
    try:
        # Not through a link that was put there before, nor into a pipe.
        if os.path.lexists(path) or not path.parent.resolve().is_relative_to(Path.cwd()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            path.write_text("text,label\n")
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(target)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
        pass
