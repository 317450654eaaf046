"""A new project's folder: its files, a git repository and a DVC project of one commit."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import git
from pipeline.params.document import Params
from pipeline.projects import texts, wiring
from pipeline.projects.parameters import save
from pruneonce import projects
from pruneonce.errors import PipelineError, plain

OURS = ("params.yaml", "dvc.yaml", "prefect.yaml", "prefect.toml", "flow.py", ".dvc")  # that a folder must not have yet
DATA = ("/data/", "!/data/", "/dvc_plots/")  # lines of the code's .gitignore about what stages write
NOBODY = ("-c", "user.name=pruneonce", "-c", "user.email=pruneonce@localhost")  # where git knows no name


def check(folder: Path) -> None:
    """Raise PipelineError if the folder cannot become a project."""
    if folder.exists() and not folder.is_dir():
        raise PipelineError(f"expected a folder for the new project, found a file: {folder}.")
    if there := [name for name in OURS if (folder / name).exists()]:
        raise PipelineError(
            f"expected no project in {folder} yet, found {', '.join(there)}. Give another folder. One more "
            "task for a project is added in its folder: pruneonce add-task FILE"
        )


def create(folder: Path, params: str, checked: Params, *, imports: bool, data: Sequence[str]) -> Iterator[str]:
    """Write the project, and yield lines that say what was made. If it fails, the folder is as it was.

    imports: a sparse checkpoint enters in place of `sparsify`. data: files in the folder that git is to ignore.
    """
    files = _files(folder, params, checked, imports=imports, data=data)
    before = folder.exists()
    made = [path for name in (*files, ".dvc", ".dvcignore", ".git") if not (path := folder / name).exists()]
    kept = {path: path.read_bytes() for path in (folder / name for name in files) if path.exists()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            save(folder / name, text)
        inside = git.run("rev-parse", "--is-inside-work-tree", folder=folder).returncode == 0
        _repository(folder, inside=inside)
        _commit(folder, [*files, ".dvc", ".dvcignore"])
    except BaseException:
        _remove(made if before else [folder])
        for path, content in kept.items():
            path.write_bytes(content)
        raise
    place = "This folder" if folder.resolve() == Path.cwd() else str(folder)
    repository = "in the git repository that was there" if inside else "git"
    yield f"{place}: {', '.join(files)}; {repository} and DVC, one commit"


def _files(folder: Path, params: str, checked: Params, *, imports: bool, data: Sequence[str]) -> dict[str, str]:
    tasks = list(checked.tasks)
    readme = texts.README.format(
        title=folder.resolve().name, tasks=" and ".join(tasks), task=tasks[0], version=projects.installed()
    )
    shipped = (projects.root() / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = texts.IGNORED + "".join(f"{line}\n" for line in shipped if line.startswith(DATA))
    ignored += "".join(f"/{name}\n" for name in data)
    files = {
        "params.yaml": params,
        "dvc.yaml": wiring.text(imports=imports),
        "prefect.yaml": texts.PREFECT.format(name=next(iter(checked.tasks))),
        "prefect.toml": texts.PREFECT_SETTINGS,
        "flow.py": texts.FLOW,
        ".gitignore": _joined(folder / ".gitignore", ignored),
    }
    return files if (folder / "README.md").exists() else {**files, "README.md": readme}


def _joined(path: Path, lines: str) -> str:
    """The lines after those that the file has already."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    new = "".join(f"{line}\n" for line in lines.splitlines() if line not in before.splitlines())
    return (before if before.endswith("\n") or not before else f"{before}\n") + new


def _repository(folder: Path, *, inside: bool) -> None:
    """A git repository, unless the folder lies in one, and a DVC project. Raises PipelineError."""
    if not inside:
        _need(git.run("init", "--quiet", folder=folder))
    top = git.run("rev-parse", "--show-prefix", folder=folder).stdout.strip() == ""
    words = [sys.executable, "-m", "dvc", "init", "--quiet", *([] if top else ["--subdir"])]
    _need(subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", env=_quiet()))
    save(folder / ".dvc/config", texts.DVC)


def _commit(folder: Path, names: Sequence[str]) -> None:
    """One commit of these files alone: what else is staged stays as it is."""
    there = [name for name in names if (folder / name).exists()]
    _need(git.run("add", "--", *there, folder=folder))
    known = git.run("config", "user.email", folder=folder).stdout.strip()
    _need(
        git.run(*(() if known else NOBODY), "commit", "--quiet", "-m", "A project of pruneonce", "--", *there, folder=folder)
    )


def _need(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        words = " ".join(str(word) for word in done.args[-6:])
        raise PipelineError(f"expected `{words}` to succeed, found: {plain(done.stderr or done.stdout)}")


def _quiet() -> dict[str, str]:
    return {**os.environ, "DVC_NO_ANALYTICS": "1"}


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
