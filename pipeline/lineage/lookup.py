"""Find what made a file of a known md5: in the lock files, in the registry, or by what the file says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.lineage import model_file
from pipeline.lineage.facts import no_store
from pipeline.lineage.graph import Graph, Node
from pipeline.lineage.history import NONE, History, Version
from pipeline.tracking.address import shown
from pipeline.tracking.lock import Stage, makers
from pruneonce.errors import DataError, TrackerUnreachable

if TYPE_CHECKING:
    from pipeline.tracking.asked import Registered


@dataclass
class Subject:
    """A file that was asked about.

    md5, path: as a lock file has them; empty for a run as a whole.
    version: that lock file's.
    says: how the question led to it.
    about: what the file says of itself.
    file: where it is, if it was named by a path.
    registered: the version that was asked about.
    """

    md5: str
    path: str
    version: Version
    roots: list[Node]
    says: list[str]
    about: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    registered: "Registered | None" = None


class Lookup:
    """One history and one graph, which all questions of a command share."""

    def __init__(self) -> None:
        self.history = History()
        self.graph = Graph(self.history)
        self.problem = ""  # why MLflow could not be asked

    def by_md5(self, md5: str, path: str, about: Mapping[str, Any]) -> Subject | None:
        """From the lock files, this folder's first; else from the registry's tags; else from what the file says itself."""
        if found := self.history.made(md5, path):
            version, _, out = found
            says = [] if not version.commit else [f"{out} in {version.name}; dvc.lock now has no file of this md5"]
            return self.made(out, md5, version, says)
        if version_of := self.ask(lambda asked: asked.versions_of([md5])):
            return self.of_version(version_of[0], [])
        if isinstance(about.get("deps"), Mapping):
            name = f"export@{about.get('task', 'unknown')}"
            deps = {str(key): str(value) for key, value in about["deps"].items()}
            root = self.graph.stated(Stage(name, deps, {}, {}))
            says = ["no lock file names this md5: below is what the file says of itself", model_file.said(dict(about))]
            return Subject(md5, "", NONE, [root], says)
        return None

    def made(self, path: str, md5: str, version: Version, says: list[str], file: Path | None = None) -> Subject:
        roots = [self.graph.node(stage, version) for stage in makers(path, md5, version.stages, version.now)]
        return Subject(md5, path, version, roots, says, file=file)

    def of_version(self, found: "Registered", says: list[str]) -> Subject:
        """A registered version: by its md5 in the lock files, else by its run."""
        md5, path, commit = (found.tags.get(key, "") for key in ("md5", "path", "git_commit"))
        says = [f"{found.name}  md5 {md5 or 'not tagged'}", *says]
        if commit and (version := self.history.at(commit)) and version.commit:
            for _, out, recorded in version.outs():
                if recorded == md5:
                    return self.made(out, md5, version, [*says, f"{out} in {version.name}"])
        if md5 and (made := self.history.made(md5, path)):
            version, _, out = made
            return self.made(out, md5, version, [*says, f"{out} in {version.name}"])
        says.append("no lock file names this md5: below is what its MLflow run says")
        run = next(iter(self.ask(lambda asked: asked.beginning(found.run_id)) or ()), None) if found.run_id else None
        if run is None or run.stage is None:
            raise DataError(
                f"expected a lock file or an MLflow run of {found.name} with md5 {md5 or 'none'}, found neither."
            )
        return Subject(md5, path, NONE, [self.of_stage(run.stage)], says)

    def of_stage(self, stage: Stage) -> Node:
        """The node of a stage as a run tells it: that of the lock file with the same outs if there is one."""
        md5s = set(stage.outs.values())
        for version in self.history.versions(min(md5s, default=stage.name)):
            recorded = version.stages.get(stage.name)
            if recorded and md5s and set(recorded.outs.values()) == md5s:
                return self.graph.node(recorded, version)
        return self.graph.stated(stage)

    def ask(self, question: Any) -> Any:
        """An answer of MLflow; None if there is no store, or it does not answer."""
        if no_store() or self.problem:
            return None
        from pipeline.tracking import asked  # imports MLflow, which takes seconds

        try:
            return question(asked)
        except TrackerUnreachable as error:
            self.problem = str(error)
            return None

    def unasked(self) -> str:
        if no_store():
            return f" (no MLflow store at {shown()})"
        return f" (MLflow was not asked: {self.problem.rstrip('.')})" if self.problem else ""
