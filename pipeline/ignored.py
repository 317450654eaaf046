"""The files of a folder that DVC counts in the folder's md5.

DVC ignores its own files and git's, what a .dvcignore names, and a folder that is a DVC project of its own.
This module follows dvc/ignore.py of DVC 3.67.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

ALWAYS = (".hg/", ".git/", ".git", ".dvc/")
FILE = ".dvcignore"
Rules = tuple[tuple[Path, GitIgnoreSpec], ...]  # folder, and the patterns of its .dvcignore; the outermost first


def files(folder: Path) -> Iterator[Path]:
    """The files of a folder that DVC counts, at any depth.

    A link to a file counts as a file. A link to a folder is not followed.
    Outside of a DVC repository every file counts, as it does for DVC.
    """
    path = Path(os.path.abspath(folder))  # links stay: DVC takes a linked folder by the path of the link
    root = next((parent for parent in path.parents if (parent / ".dvc").is_dir()), None)
    rules: Rules = ()
    if root:
        rules = ((root, GitIgnoreSpec.from_lines(ALWAYS)),)
        for parent in reversed([p for p in path.parents if p.is_relative_to(root)]):
            rules = _more(parent, rules)
    for found in _walk(path, rules):
        yield folder / found.relative_to(path)


def _walk(folder: Path, rules: Rules) -> Iterator[Path]:
    if rules:
        rules = _more(folder, rules)
    for entry in sorted(folder.iterdir()):
        inside = entry.is_dir()
        if rules and (_ignored(entry, inside, rules) or (inside and (entry / ".dvc").exists())):
            continue
        if inside and not entry.is_symlink():
            yield from _walk(entry, rules)
        elif entry.is_file():
            yield entry


def _more(folder: Path, rules: Rules) -> Rules:
    """The rules, followed by those of the folder's own .dvcignore. An ignored .dvcignore adds none."""
    file = folder / FILE
    if not file.is_file() or _ignored(file, False, rules):
        return rules
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return (*rules, (folder, GitIgnoreSpec.from_lines(lines)))


def _ignored(path: Path, inside: bool, rules: Rules) -> bool:
    """Whether the last pattern that matches the path ignores it. inside: the path is a folder."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if inside else "")
        for pattern in reversed(spec.patterns):
            if pattern.include is not None and pattern.match_file(name):
                return bool(pattern.include)
    return False
