"""The git repository: whether runs can be committed, and whether they would be logged as of a clean tree."""

from collections.abc import Iterator

from pipeline import git
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.errors import PipelineError

MOST = 2.0  # seconds that a question may take


def repository() -> Iterator[Finding]:
    try:
        changed = git.run("status", "--porcelain", seconds=MOST)
    except PipelineError:
        yield Finding("git", PROBLEM, "expected git, found none", "Install git.")
        return
    if changed.returncode:
        yield Finding("git", PROBLEM, f"expected a git repository, found: {changed.stderr.strip()}", "git init")
        return
    if not (git.said("config", "user.name") and git.said("config", "user.email")):
        advice = "git config --global user.name NAME; git config --global user.email ADDRESS"
        yield Finding("git", NOTE, "no name or address is set: git refuses to commit a run", advice)
    lines = changed.stdout.splitlines()
    head = git.said("rev-parse", "--short", "HEAD") or "no commit yet"
    if lines:
        files = f"{len(lines)} changed file{'s' * (len(lines) > 1)}"
        advice = "Commit them, and a run names the commit that it is of."
        yield Finding("git", NOTE, f"{head}, with {files}, such as {lines[0][3:]}", advice)
    else:
        yield Finding("git", OK, f"{head}, clean")
