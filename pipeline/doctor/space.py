"""Space on the disk: what is free, what a run writes, and whether DVC's cache copies every file."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline import dvc_settings
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding

LOCK = Path("dvc.lock")
REFLINKS = ("btrfs", "xfs", "zfs", "bcachefs", "ocfs2", "apfs")  # file systems on which a copy may take no space
GB = 1e9
FIRST = 4 * GB  # what the default profile writes, with DVC's copies
ADVICE = "Free some, or move DVC's cache: dvc cache dir. What no commit needs: dvc gc --workspace --all-commits"


def disk() -> Iterator[Finding]:
    """Free space against the bytes of all outs of dvc.lock, which a run with other parameters writes anew."""
    folder = dvc_settings.cache()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    kind = filesystem(there)
    shared = there.stat().st_dev == Path().stat().st_dev and kind in REFLINKS
    free = min(shutil.disk_usage(there).free, shutil.disk_usage(".").free)
    yield _enough(free, written() * (1 if shared else 2))
    copies = "it may share blocks with the outs" if shared else "each out is on the disk twice"
    yield Finding("dvc cache", OK, f"{folder} on {kind or 'an unknown file system'}: {copies}")


def _enough(free: float, needs: float) -> Finding:
    """needs: 0 before the first run."""
    said = f"{free / GB:.1f} GB are free"
    if not needs:
        return Finding(
            "disk",
            OK if free > FIRST else NOTE,
            f"{said}; a first run of MiniLM-L6 writes {FIRST / GB:.0f} GB",
        )
    said += f"; a run that computes everything anew writes up to {needs / GB:.1f} GB"
    return Finding("disk", OK, said) if free > needs else Finding("disk", PROBLEM, said, ADVICE)


def written(lock: Path = LOCK) -> int:
    """Bytes of all outs and deps that are in the lock file, each once."""
    try:
        text = lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    return sum(map(int, dict(re.findall(r"md5: (\S+)\n\s+size: (\d+)", text)).values()))


def filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that holds a path; empty if Linux does not say."""
    found = ""
    longest = -1
    for line in mounts.read_text(errors="replace").splitlines():
        _, where, kind, *_ = line.split()
        if path.resolve().is_relative_to(where) and len(where) > longest:
            found, longest = kind, len(where)
    return found
