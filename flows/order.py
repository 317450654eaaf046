"""The DVC stages of a pipeline, each after the stages that it reads."""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from flows import trouble
from pipeline.tracking import lock
from pruneonce.errors import PipelineError


@dataclass(frozen=True)
class Pipeline:
    """A DVC project, and the page that its last stage writes."""

    name: str
    folder: Path
    page: Path


COMPRESS = Pipeline("compress", lock.PIPELINE, Path("data/report/report.md"))
# They read the outs of the one above; on demand only.
STUDY = Pipeline("study", lock.STUDY, Path("study/table.md"))
PATTERNS = Pipeline("patterns", lock.PATTERNS, Path("study/patterns/table.md"))
# Stages that serve all tasks. A project has `sparsify`, or `import_sparse` in its place.
SHARED = {
    "fetch",
    "fetch_local",
    "prepare_task",
    "list_tasks",
    "prepare_corpus",
    "prepare_teacher",
    "sparsify",
    "import_sparse",
}


def variants(document: Mapping[str, Any]) -> set[str]:
    """The variants that study/dvc.yaml has cells of. document: study/dvc.yaml; a cell has one of its params a variant."""
    names: set[str] = set()
    for stage in document["stages"].values():
        keys = [key for file in stage["params"] for keys in file.values() for key in keys]
        named = {key.removeprefix("study.variants.") for key in keys if key.startswith("study.variants.")}
        names |= {v for name in named for v in (stage["matrix"]["variant"] if name == "${item.variant}" else [name])}
    return names


def in_order(pipeline: Pipeline) -> list[str]:
    """The stages of the pipeline and those that they need, each after the stages it reads; those of one task in a row.

    A study is a DVC project inside the pipeline's, so the two projects are read one by one.
    Raises PipelineError if there are no stages.
    """
    with trouble.plainly("a pipeline that DVC can read"), Repo(str(pipeline.folder)) as repo:
        own = _of(repo, lambda stage: stage.path_in_repo == "dvc.yaml")  # not the files that a person tracks beside it
        if not own:
            file = pipeline.folder / "dvc.yaml"
            raise PipelineError(f"expected stages in {file}, found none. Get it back with: git checkout -- {file}")
        if pipeline.folder == COMPRESS.folder:
            return _sorted(own)
        read = {dep.fs_path for stage in own for dep in stage.deps}
        last = _sorted(own)
    with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
        return [*_sorted(_of(repo, lambda s: any(lock.meet(o.fs_path, path) for o in s.outs for path in read))), *last]


@dataclass(frozen=True)
class Parts:
    """The stages of a run: those that serve all tasks, those of each task, those that read them all."""

    shared: list[str]
    branches: dict[str, list[str]]
    last: list[str]


def parts(stages: list[str]) -> Parts:
    """stages: in order."""
    found = Parts([], {}, [])
    for stage in stages:
        rank, item, _ = _rank(stage)
        if rank == 0:
            found.shared.append(stage)
        elif item == "~":
            found.last.append(stage)
        else:
            found.branches.setdefault(item, []).append(stage)
    return found


def _of(repo: Repo, chosen: Callable[[Any], bool]) -> Any:
    """The chosen stages and those that they need, as a graph from a stage to the stages that it reads."""
    graph = repo.index.graph
    near = [stage for stage in graph if chosen(stage)]
    return graph.subgraph({stage for one in near for stage in (one, *networkx.descendants(graph, one))})


def _sorted(graph: Any) -> list[str]:
    stages = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: _rank(stage.addressing))
    return [stage.addressing for stage in stages]


def _rank(name: str) -> tuple[int, str, str]:
    """A key for the paper's order: first the stages that serve all tasks, then task by task."""
    base, _, item = name.partition("@")
    return (0, name, "") if base in SHARED else (1, item or "~", name)


def signatures() -> dict[str, str]:
    """Stage -> a digest of its command, its parameters, and the same of the stages that it reads: of one commit, what two
    settings have in common. Nothing needs to be computed for it."""
    found: dict[str, str] = {}
    with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
        graph = repo.index.graph
        for stage in networkx.topological_sort(graph.reverse()):
            values = [dep.get_hash().value for dep in stage.deps if isinstance(dep, ParamsDependency)]
            above = sorted(found[other.addressing] for other in graph.successors(stage))
            text = json.dumps([stage.addressing, stage.cmd, values, above], sort_keys=True, default=str)
            found[stage.addressing] = hashlib.sha256(text.encode()).hexdigest()
    return found


def pending(stages: list[str]) -> bool:
    """Whether DVC would run or restore any of the stages."""
    for folder, names in itertools.groupby(stages, lock.project):
        with trouble.plainly("a pipeline whose state DVC can read"), Repo(str(folder)) as repo:
            if repo.status(targets=list(names), with_deps=False):
                return True
    return False
