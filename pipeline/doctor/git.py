"""The git repository: whether runs can be committed, and whether they would be logged as of a clean tree."""

import subprocess
from collections.abc import Iterator

from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding


def repository() -> Iterator[Finding]:
    try:
        changed = _git("status", "--porcelain")
    except FileNotFoundError:
        yield Finding("git", PROBLEM, "expected git, found none", "Install git.")
        return
    if changed.returncode:
        yield Finding("git", PROBLEM, f"expected a git repository, found: {changed.stderr.strip()}", "git init")
        return
    if not _git("config", "user.name").stdout.strip() or not _git("config", "user.email").stdout.strip():
        advice = "git config --global user.name NAME; git config --global user.email ADDRESS"
        yield Finding("git", NOTE, "no name or address is set: git refuses to commit a run", advice)
    lines = changed.stdout.splitlines()
    head = _git("rev-parse", "--short", "HEAD").stdout.strip() or "no commit yet"
    if lines:
        files = f"{len(lines)} changed file{'s' * (len(lines) > 1)}"
        advice = "Commit them, and a run names the commit that it is of."
        yield Finding("git", NOTE, f"{head}, with {files}, such as {lines[0][3:]}", advice)
    else:
        yield Finding("git", OK, f"{head}, clean")


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "--no-optional-locks", *words], capture_output=True, text=True, errors="replace", timeout=2
    )
