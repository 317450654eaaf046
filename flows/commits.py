"""What another machine needs to get the code of a run: a commit, and a repository that has it."""

import os
import re
from pathlib import Path

from pipeline import git
from pipeline.tracking import committed
from pruneonce import projects
from pruneonce.errors import PipelineError, plain

REPOSITORY = "PRUNEONCE_REPOSITORY"  # where workers clone from, if that is not `origin`
COMMIT = "PRUNEONCE_COMMIT"  # both are set for the run of a worker: prefect.yaml names them
CODE = ("dvc.yaml", ".dvc", "flows", "kernels", "pipeline", "pruneonce", "stages")
OWN = "params.yaml"  # handed over as it is


def head(*paths: str) -> str:
    """The commit of this folder. paths: what must be in it as well as the code.

    Raises PipelineError if one of them is in no commit: others could not get it.
    """
    if not projects.is_clone() or git.said("rev-parse", "--show-prefix"):
        raise PipelineError("expected a clone of the code, whose commit others can clone too, found a folder without it.")
    commit = committed.head()
    if not commit:
        raise PipelineError("expected a commit, which others can clone, found none. Make one: git add -A && git commit")
    new = git.lines("ls-files", "--others", "--exclude-standard", "--", *CODE, *paths)
    if changed := [path for path in committed.edited() if path != OWN] + new:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise PipelineError(
            f"expected all code in a commit, because it is cloned, found {', '.join(changed[:3])}{more} in none. "
            "Commit the changes, push them if workers clone from elsewhere, and run again."
        )
    return commit


def repository(commit: str) -> str:
    """From where a worker clones the commit, without a password: Prefect stores it, and shows it.

    Raises PipelineError if `origin` has no such commit, or PRUNEONCE_REPOSITORY holds a password.
    """
    if given := os.environ.get(REPOSITORY):
        if _open(given) != given:
            raise PipelineError(
                f"expected an address without user and password in {REPOSITORY}, because Prefect stores and shows it, found "
                f"one with them: {plain(given)}. Take them out, and give git the password on each worker's machine: "
                "git config --global credential.helper store"
            )
        return given
    origin = git.said("remote", "get-url", "origin")
    if not origin:
        return str(Path.cwd())
    if not git.said("branch", "--remotes", "--contains", commit):
        raise PipelineError(
            f"expected the commit {commit[:8]} in a branch of {plain(origin)}, from which workers clone, found it in none. "
            f"Push it: git push; or name another repository in {REPOSITORY}."
        )
    folder = Path(origin)
    return str(folder.resolve()) if folder.is_dir() else _open(origin)


def _open(address: str) -> str:
    """An address without its password. The user of an ssh address stays: it is no secret, and ssh needs it."""
    user, at, _ = address.partition("@")
    if at and re.fullmatch(r"(git\+)?ssh://[^:/]*", user):
        return address
    return plain(address)
