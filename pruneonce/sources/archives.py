"""Archives: members of a wheel, zip or tar file, unpacked safely."""

import contextlib
import tarfile
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from pruneonce.errors import SourceError
from pruneonce.sources.folders import File, add, faults_as_errors, file_name, write


def unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Write the named members into `folder`: files, or folders with all their files.

    members: name in `folder` -> file or folder in the archive. A link is never followed or made. Of two members with the
    same name the last counts, as for every reader.
    Raises SourceError for a damaged archive, UnsafeArchive for a name outside `folder`; then nothing is written.
    """
    with faults_as_errors(f"unpack {archive.name}"), contextlib.ExitStack() as opened:
        if zipfile.is_zipfile(archive):
            zipped = opened.enter_context(zipfile.ZipFile(archive))
            infos = [i for i in zipped.infolist() if not i.is_dir() and (i.external_attr >> 28) != 0o12]
            files = {i.filename: File(i.file_size, partial(zipped.open, i)) for i in infos}
        elif tarfile.is_tarfile(archive):
            tarred = opened.enter_context(tarfile.open(archive))
            files = {m.name: File(m.size, partial(tarred.extractfile, m)) for m in _tar_members(tarred) if m.isfile()}
        else:
            raise SourceError(f"expected a wheel, zip or tar file, found {archive.name}.")
        write(_plan(files, members, archive.name), folder, archive.name)


def _tar_members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return all members. Raises ReadError at a damaged header, where Python's reader ends as if there were no more."""
    members = archive.getmembers()
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) not in (b"", bytes(tarfile.BLOCKSIZE)):  # some writers end without
        raise tarfile.ReadError(f"no header, and no end, at byte {archive.offset}")
    return members


def _plan(files: Mapping[str, File], members: Mapping[str, str], archive: str) -> dict[str, File]:
    """Return name in the source's folder -> file of the archive; a file may have several names."""
    plan: dict[str, File] = {}
    for name, member in members.items():
        prefix = member.rstrip("/") + "/"
        targets = {f: file_name(name, PurePosixPath(f)) for f in files if f == member}
        targets |= {f: str(PurePosixPath(name) / f.removeprefix(prefix)) for f in files if f.startswith(prefix)}
        if not targets:
            near = [f for f in files if PurePosixPath(f).suffix == PurePosixPath(member).suffix] or list(files)
            raise SourceError(f"expected member {member!r} in {archive}, found none; it holds e.g. {near[:8]}.")
        for file, target in targets.items():
            add(plan, target, files[file])
    return plan
