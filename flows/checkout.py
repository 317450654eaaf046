"""A clone of this folder's commit, to compute other parameters in: params.yaml and dvc.lock of the folder stay as they are.

It uses the folder's DVC cache, so what was computed before is restored, and the other way round.
"""

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from dvc.repo import Repo

from flows import handing
from flows.units import KERNELS, LOCK, Team
from pipeline import git
from pipeline.params.document import Params
from pipeline.scratch import DEFAULT, PLACE
from pruneonce.errors import PipelineError


def make(folder: Path, team: Team) -> None:
    """Make the clone, or bring one that is there to the commit of the team. Raises PipelineError."""
    if not (folder / ".git").is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git("clone", "--quiet", "--shared", "--no-checkout", str(Path.cwd()), str(folder))
    _git("-C", str(folder), "fetch", "--quiet", "origin", "HEAD")
    _git("-C", str(folder), "checkout", "--quiet", "--force", "--detach", team.commit)
    with Repo() as repo:
        cache = repo.config["cache"].get("dir") or str(Path(".dvc/cache").absolute())
        remote = team.remote and {team.remote["name"]: dict(repo.config["remote"][team.remote["name"]])}
    with Repo(str(folder)) as repo, repo.config.edit("local") as local:
        local["cache"]["dir"] = cache
        if team.remote:
            local["remote"].update(remote)
            local["core"]["remote"] = team.remote["name"]
    if LOCK.exists():
        (folder / LOCK).write_bytes(LOCK.read_bytes())
    if KERNELS.exists() and not (folder / KERNELS).exists():
        (folder / KERNELS).symlink_to(KERNELS.absolute())


def link_sources(chosen: Params) -> None:
    """Link the local sources that params.yaml names and git does not have. Called in the clone."""
    home = Path(_git("remote", "get-url", "origin"))
    for source in chosen.fetch_local.values():
        path = Path(source.path)
        if not path.is_absolute() and not path.exists() and (home / path).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(home / path)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in the clone, with this folder's MLflow store and scratch folder."""
    names = ("MLFLOW_TRACKING_URI", PLACE)
    before = {name: os.environ.get(name) for name in names}
    if store := handing.store_address():
        os.environ["MLFLOW_TRACKING_URI"] = store
    os.environ.setdefault(PLACE, str(DEFAULT.absolute()))
    try:
        with chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _git(*words: str) -> str:
    done = git.run(*words)
    if done.returncode:
        raise PipelineError(f"expected a clone of this folder, found: {done.stderr.strip()}. Remove it, and run again.")
    return done.stdout.strip()
