"""Local sources: files of this machine, copied. No link leads out of the source's path."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from pruneonce.errors import SourceError
from pruneonce.sources.checks import verify
from pruneonce.sources.folders import File, add, faults_as_errors, file_name, write

NOT_COPIED = {".git", ".hg", ".dvc", ".dvcignore"}  # DVC leaves them, or what they name, out of a folder's md5


def copy_local(path: Path, members: Mapping[str, str], sha256: str | None, folder: Path) -> None:
    """Copy a local file, or files of a local folder, into the source's folder under their new names.

    members: name in `folder` -> file or folder in `path`. Links inside `path` are followed. `NOT_COPIED` and empty folders
    are left out.
    Raises SourceError for a file that is missing, is no regular file or is outside `path`, and for a loop of links;
    ChecksumMismatch.
    """
    plan: dict[str, File] = {}
    with faults_as_errors(f"read {path}"):
        if not path.is_dir() and not path.is_file():
            there = "none" if not path.exists() else "a device or a pipe"
            raise SourceError(
                f"expected a file or folder at {path}, found {there}. Set `path` of this source in params.yaml."
            )
        if sha256 is not None:
            verify(path, sha256)
        for name, member in members.items():
            for target, origin in _files(path, name, member):
                add(plan, target, File(origin.stat().st_size, partial(origin.open, "rb")))
    with faults_as_errors(f"copy {path} to {folder}"):
        write(plan, folder, str(path))


def _files(path: Path, name: str, member: str) -> Iterator[tuple[str, Path]]:
    """Yield (name in the source's folder, file) of every file of a member."""
    origin, root = path / member if member != "." else path, path.resolve()
    _check_inside(origin, root)
    if origin.is_file():
        yield file_name(name, origin), origin
    elif origin.is_dir():
        for file in _files_below(origin, root, above=()):
            yield str(PurePosixPath(name) / file.relative_to(origin).as_posix()), file
    else:
        there = sorted(p.name for p in path.iterdir())[:12] if path.is_dir() else "a file (its member is `.`)"
        raise SourceError(f"expected {member} in {path}, found {there}.")


def _files_below(folder: Path, root: Path, *, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield every file in `folder` and in the folders below. above: the folders around it, links resolved."""
    above = (*above, folder.resolve())
    for entry in sorted(folder.iterdir()):
        if entry.name in NOT_COPIED:
            continue
        _check_inside(entry, root)
        if entry.is_file():
            yield entry
        elif not entry.is_dir():
            there = "a link to nothing" if entry.is_symlink() else "a device or a pipe"
            raise SourceError(f"expected files and folders in {root}, found {there}: {entry}. Remove it.")
        elif entry.resolve() in above:
            raise SourceError(
                f"expected folders that end in {root}, found a link to one that it lies in: {entry}. Remove it."
            )
        else:
            yield from _files_below(entry, root, above=above)


def _check_inside(origin: Path, root: Path) -> None:
    """Raise SourceError unless `origin`, its links resolved, is `root` or lies in it."""
    target = origin.resolve()
    if not target.is_relative_to(root):
        raise SourceError(
            f"expected files that lie in {root}, found {origin}, which leads to {target}. Make a copy without links "
            "(cp -rL), or make `path` a folder that holds both and name this one as a member."
        )
