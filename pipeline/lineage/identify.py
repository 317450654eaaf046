"""What a person asks about: a file, a registered model, an md5, an MLflow run or a git commit, as files and their makers."""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.hashing import file_md5
from pipeline.lineage import git, model_file
from pipeline.lineage.facts import no_store
from pipeline.lineage.history import Version
from pipeline.lineage.lookup import Lookup, Subject
from pipeline.tracking.address import shown
from pruneonce.errors import DataError

if TYPE_CHECKING:
    from pipeline.tracking.asked import Registered, Run

LEAST_DIGITS = 6
INT8 = "int8.onnx"  # the out of an export stage that is deployed


class Identify:
    """Finds the subjects of a question. One history and one graph serve all of them."""

    def __init__(self) -> None:
        self.look = Lookup()
        self.history = self.look.history

    def subjects(self, asked: str) -> list[Subject]:
        """Raises DataError for what is none of them, and TrackerUnreachable where only MLflow could know."""
        if asked.startswith("models:/"):
            return [self._registered(asked)]
        file = Path(asked)
        if file.exists() or file.is_symlink():
            return [self._file(file)]
        if here := self._recorded(asked):
            return [here]
        if ":" in asked:
            return [self._in_commit(*asked.split(":", 1))]
        if re.fullmatch(r"[0-9a-f]+(\.dir)?", asked) and (found := self._digits(asked)):
            return found
        if commit := git.commit_of(asked):
            return self._commit(commit)
        raise self._unknown(asked)

    def _file(self, file: Path) -> Subject:
        """A file by its path, or by its md5 if it lies elsewhere, or by what is packed in it."""
        if not file.exists():
            raise DataError(f"expected a file at {file}, found none: a link that leads nowhere.")
        if not file.is_file() and not file.is_dir():
            raise DataError(f"expected a file at {file}, found a device or a pipe. It is not read.")
        if file.is_dir() and Path.cwd().is_relative_to(file.resolve()):  # for `/` the whole disk would be read
            raise DataError(f"expected a file or an out, found {file}, the folder that this project lies in.")
        outs = self._outs()
        known = known_path(file, outs)
        if inside := self._inside(known, outs, file):
            return inside
        found = model_file.read(file)
        subject = self.look.by_md5(found.md5, known, found.about)
        if known in outs and (subject is None or subject.version.commit or subject.path != known):
            changed = f"expected {file} with md5 {outs[known]} as dvc.lock has it, found {found.md5}: it was changed since."
            if subject is None:
                raise DataError(f"{changed} Get it back with: dvc checkout {known}")
            subject.says.append(f"dvc.lock now has another md5 for {known}: {outs[known]}")
        if subject is None:
            raise self._no_lock_has(found.md5, bool(outs))
        what = f"holds, packed, an ONNX file with md5 {found.md5}" if found.packed else f"md5 {found.md5}"
        subject.says.insert(0, f"{file}  {what}")
        subject.about, subject.file = found.about, file
        return subject

    def _inside(self, known: str, outs: Mapping[str, str], file: Path) -> Subject | None:
        """A file in a folder that is an out; None if it lies in none. Raises DataError if the folder was changed since."""
        for path in (out for out in outs if known.startswith(f"{out}/")):
            if file_md5(Path(path)) != outs[path]:
                raise DataError(
                    f"expected {path}, in which {file} lies, with md5 {outs[path]} as dvc.lock has it, found another: it "
                    f"was changed since. Get it back with: dvc checkout {path}"
                )
            says = [f"{file}  md5 {file_md5(file)}", f"in the out {path}"]
            return self.look.made(path, outs[path], self.history.here, says, file=file)
        return None

    def _recorded(self, name: str) -> Subject | None:
        """An out of dvc.lock that is not in the folder."""
        path, outs = os.path.normpath(name), self._outs()
        if path not in outs:
            return None
        return self.look.made(
            path, outs[path], self.history.here, [f"{name}  md5 {outs[path]} by dvc.lock; not in this folder"]
        )

    def _outs(self) -> dict[str, str]:
        """path -> md5 of dvc.lock; where a former profile has the same path, that of the current one."""
        return {path: md5 for _, path, md5 in reversed(list(self.history.here.outs()))}

    def _registered(self, name: str) -> Subject:
        """`models:/pruneonce-r8/3` or `models:/pruneonce-r8@champion`."""
        match = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|(@[^/@]+))", name)
        if match is None:
            raise DataError(f"expected models:/NAME/VERSION or models:/NAME@ALIAS, found {name!r}.")
        if no_store():
            raise DataError(f"expected an MLflow store with {name}, found none at {shown()}. Set MLFLOW_TRACKING_URI.")
        from pipeline.tracking import asked  # imports MLflow, which takes seconds

        found = asked.registered(match[1], match[2] or match[3])
        if found is None:
            raise DataError(
                f"expected {name} in MLflow at {shown()}, found none. It has: {', '.join(asked.models()) or 'none'}."
            )
        subject = self.look.of_version(found, [])
        subject.registered = found
        return subject

    def _run(self, run: "Run") -> list[Subject]:
        """The run of a stage; of a flow, the models that it exported, else the last of its stages."""
        if stage := run.stage:
            node = self.look.of_stage(stage)
            says = [f"MLflow run {run.id} of {stage.name}"]
            if node.stated:
                says.append("no lock file has these outs: below is what the run says")
            elif node.version.commit:
                says.append(f"as {node.version.name} has it")
            return [Subject("", "", node.version, [node], says)]
        stages = [child.stage for child in self.look.ask(lambda asked: asked.children(run.id)) or () if child.stage]
        if not stages:
            raise DataError(f"expected stages of the flow run {run.id} ({run.name}) in MLflow at {shown()}, found none.")
        read = {md5 for stage in stages for md5 in stage.deps.values()}
        exports = [stage for stage in stages if any(path.endswith(f"/{INT8}") for path in stage.outs)]
        last = exports or [stage for stage in stages if not read & set(stage.outs.values())]
        flow = f"MLflow run {run.id}, a flow of {len(stages)} stages that ran"
        return [Subject("", "", node.version, [node], [flow]) for node in map(self.look.of_stage, last)]

    def _digits(self, digits: str) -> list[Subject]:
        """An md5, a run or a commit by its first digits. Raises DataError if several begin so."""
        if len(digits) < LEAST_DIGITS:
            return []
        md5s = self.history.named(digits)
        versions = [v for v in self.look.ask(lambda asked: asked.tagged(digits)) or () if v.tags["md5"] not in md5s]
        runs = self.look.ask(lambda asked: asked.beginning(digits)) or []
        commit = git.commit_of(digits) if not digits.endswith(".dir") else None
        found: dict[str, Callable[[], list[Subject]]] = {f"md5 {md5}": partial(self._digest, md5) for md5 in sorted(md5s)}
        found |= {f"{v.name} (md5 {v.tags['md5']})": partial(self._version_of, v) for v in versions}
        found |= {f"run {run.id}": partial(self._run, run) for run in runs}
        if commit:
            found[f"commit {commit}"] = partial(self._commit, commit)
        if len(found) > 1:
            some = ", ".join(list(found)[:6])
            raise DataError(
                f"expected digits that one md5, run or commit begins with, found {len(found)} for {digits}: {some}."
            )
        return next(iter(found.values()))() if found else []

    def _version_of(self, version: "Registered") -> list[Subject]:
        return [self.look.of_version(version, [])]

    def _digest(self, md5: str) -> list[Subject]:
        subject = self.look.by_md5(md5, "", {})
        assert subject is not None
        if not subject.version.commit:
            subject.says.append(f"{subject.path} in dvc.lock")
        subject.says.insert(0, f"md5 {md5}")
        return [subject]

    def _in_commit(self, name: str, path: str) -> Subject:
        version = self._version(git.commit_of(name), name)
        known = os.path.normpath(path)
        for _, out, md5 in version.outs():
            if Path(known).is_relative_to(out):
                says = [f"{out}  md5 {md5}", f"in {version.name}"]
                return self.look.made(out, md5, version, says)
        raise DataError(f"expected an out of {version.name}, found {path!r}. {some_outs(version)}")

    def _commit(self, commit: str) -> list[Subject]:
        """What the lock files of a commit made: its int8 models."""
        version = self._version(commit, commit)
        made = [(path, md5) for stage, path, md5 in version.outs() if Path(path).name == INT8 and stage.name in version.now]
        if not made:
            raise DataError(f"expected an int8 model in the lock files of {version.name}, found none. {some_outs(version)}")
        return [self.look.made(path, md5, version, [f"{path}  md5 {md5}", f"in {version.name}"]) for path, md5 in made]

    def _version(self, commit: str | None, name: str) -> Version:
        if commit is None:
            raise DataError(f"expected a commit of git before the `:`, found {name!r}, or a file that is here.")
        version = self.history.at(commit)
        if version is None:
            raise DataError(f"expected a dvc.lock with stages in commit {git.dated(commit)}, found none that can be read.")
        return version

    def _no_lock_has(self, md5: str, any_outs: bool) -> DataError:
        if not any_outs and not git.commits_of(*git.LOCKS):
            return DataError("expected stages in dvc.lock, found none. Run the pipeline first, in this folder.")
        return DataError(
            f"expected a file that a stage wrote, found md5 {md5}, which no stage did by dvc.lock, nor by the lock files of "
            f"{len(git.commits_of(*git.LOCKS))} commits, nor by the registry{self.look.unasked()}; nor does the file say "
            "itself where it came from."
        )

    def _unknown(self, asked: str) -> DataError:
        outs = sorted(self._outs())
        some = f" Outs are e.g. {', '.join(outs[:6])}." if outs else " There is no dvc.lock with stages here."
        digits = f" (at least {LEAST_DIGITS} digits)" if re.fullmatch("[0-9a-f]+", asked) else ""
        return DataError(
            f"expected a file at {asked}, found none; nor is it an out of dvc.lock, a commit of git, or the beginning of an "
            f"md5 in a lock file or of an MLflow run{digits}{self.look.unasked()}.{some}"
        )


def some_outs(version: Version) -> str:
    """A few outs, for a message."""
    return f"Outs are e.g. {', '.join(sorted({path for _, path, _ in version.outs()})[:6])}."


def known_path(file: Path, outs: Mapping[str, str]) -> str:
    """The file's path from here if it is an out or lies in one; else its unchanged name.

    Its own name comes first, because DVC may link an out to its cache; then the path that its links lead to.
    """
    beside = os.path.join(os.path.realpath(file.parent), file.name)  # the folder's links alone are followed
    for path in map(Path, (os.path.abspath(file), beside, os.path.realpath(file))):  # none raises for a loop of links
        if path.is_relative_to(Path.cwd()):
            known = path.relative_to(Path.cwd()).as_posix()
            if any(Path(known).is_relative_to(out) for out in outs):
                return known
    return str(file)
