"""What git has: the lock files of all commits, and files as they were. A folder without git has no history."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pipeline.git import said
from pipeline.tracking.lock import FOLDERS

LOCKS = tuple(folder / "dvc.lock" for folder in FOLDERS)


def blob(commit: str, path: Path | str) -> bytes | None:
    """A file of this project in a commit; None if it is not there."""
    name = f"{commit}:./{os.path.normpath(path)}"
    try:
        done = subprocess.run(["git", "cat-file", "blob", name], capture_output=True)
    except (OSError, ValueError):
        return None
    return done.stdout if done.returncode == 0 else None


def commit_of(name: str) -> str | None:
    """The whole id of a commit, a tag or a branch; None if git has no such one."""
    if not name or name.startswith("-"):
        return None
    found = said("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    return found if found and re.fullmatch("[0-9a-f]{40,64}", found) else None


def dated(commit: str) -> str:
    """A commit as people read it: its short id and its day."""
    return f"{commit[:9]} ({said('log', '-1', '--format=%cs', commit) or 'an unknown day'})"


def commits_of(*paths: Path | str) -> list[str]:
    """The commits of all branches that changed one of these paths, newest first."""
    head = ["HEAD"] if commit_of("HEAD") else []
    found = said("log", "--all", "--format=%H", *head, "--", *map(str, paths))
    return found.split() if found else []


def locks() -> Iterator[tuple[str, bytes]]:
    """(commit, text of its lock files) of every commit that changed one, newest first. One git process reads them."""
    commits = commits_of(*LOCKS)
    if not commits:
        return
    prefix = said("rev-parse", "--show-prefix") or ""
    command = ["git", "cat-file", "--batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as cat:
        assert cat.stdin
        assert cat.stdout
        try:
            for commit in commits:
                texts: list[bytes] = []
                for path in LOCKS:
                    cat.stdin.write(f"{commit}:{prefix}{path}\n".encode())
                    cat.stdin.flush()
                    head = cat.stdout.readline().split()
                    if len(head) == 3 and head[2].isdigit():  # else it is missing
                        texts.append(cat.stdout.read(int(head[2]) + 1))
                yield commit, b"".join(texts)
        finally:
            cat.stdin.close()
            cat.stdout.close()
            cat.kill()
