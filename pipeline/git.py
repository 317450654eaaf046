"""git, asked by the project. No question takes the index's lock: a person's own git command beside it never fails."""

import subprocess
from pathlib import Path

from pruneonce.errors import PipelineError


def run(*words: str, folder: Path | None = None, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """git with these words, in a folder or in this one, and how it ended. seconds: after which it is killed.

    Raises PipelineError if git is not installed; ValueError of a NUL in a word.
    """
    command = ["git", "--no-optional-locks", *words]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds)
    except FileNotFoundError:
        raise PipelineError("expected git, found none. Install it, and run again.") from None


def said(*words: str) -> str | None:
    """What git prints in this folder; None if it fails, or is not installed."""
    try:
        done = run(*words)
    except (PipelineError, OSError, ValueError):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def lines(*words: str) -> list[str]:
    """What git prints in this folder, by lines; none if it fails, or is not installed."""
    return (said(*words) or "").splitlines()
