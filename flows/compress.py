"""Compress one language model: every DVC stage as one Prefect task, in dependency order, tracked under one MLflow run.

`python -m flows.compress` runs params.yaml as it stands; `--profile tiny` another one; `--set sparsify.sparsity=0.9`
changes single numbers; `--pipeline study` runs the study, and of the pipeline what it stands on. The flow adds order on a
screen, not truth: `dvc repro` does the same work with the same bytes.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from flows import stopping

    stopping.listen()

import argparse
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import networkx
from dvc.repo import Repo
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from flows import leftovers, trouble
from flows.repro import Outcome, quiet_logs, repro, say_errors_once
from pipeline import lineage, processes
from pipeline.params import profiles
from pipeline.params.document import Params
from pipeline.params.reading import read_yaml
from pipeline.plan import inventory
from pruneonce.errors import PipelineError, PruneOnceError
from pruneonce.terminal import flushed_output

LOCK = Path(".pruneonce/run.lock")
KEPT = ("params.yaml", "dvc.lock", "data", "study")  # where a run writes what git keeps


@dataclass(frozen=True)
class Pipeline:
    """A DVC project, and the page that its last stage writes."""

    name: str
    folder: Path
    page: Path


COMPRESS = Pipeline("compress", Path(), Path("data/report/report.md"))
STUDY = Pipeline("study", Path("study"), Path("study/table.md"))  # stands on the other's outs; on demand only


@flow(name="compress", validate_parameters=True, persist_result=False, log_prints=False)
def compress(profile: str | None = None, overrides: list[str] | None = None) -> list[Outcome]:
    """Run every stage that something changed for.

    profile: a file of profiles/, or None for params.yaml as it stands. overrides: ["section.key=value", ...].
    """
    return run(COMPRESS, profile, overrides or [])


@flow(name="study", validate_parameters=True, persist_result=False, log_prints=False)
def study(profile: str | None = None, overrides: list[str] | None = None) -> list[Outcome]:
    """What does pruning once buy? Run every cell of the study that something changed for, and what it stands on."""
    return run(STUDY, profile, overrides or [])


def run(pipeline: Pipeline, profile: str | None, overrides: list[str]) -> list[Outcome]:
    """The stages of the pipeline in order, inside a flow."""
    quiet_logs()
    # dvc.yaml says `python`: it must be this one, also where nobody activated its environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with processes.alone(LOCK, "run in this folder"):
        chosen = profiles.select(profile, overrides)
        if pipeline is STUDY:
            chosen.check_study(variants(read_yaml(STUDY.folder / "dvc.yaml")))
        logger = get_run_logger()
        with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
            for line in leftovers.clear(repo):
                logger.info(line)
        stages = order(pipeline)
        done: list[Outcome] = []
        with parent_run(pipeline, stages, {"profile": profile or "params.yaml", "overrides": " ".join(overrides)}, done):
            first = next((stage for stage in stages if not stage.startswith("fetch")), "")  # by _rank, all sources are there
            for number, stage in enumerate(stages, 1):
                if stage == first:
                    check_lengths(chosen)
                outcome = repro(stage)
                done.append(outcome)
                logger.info(
                    "%d/%d %s: %s (%s) %.1f s", number, len(stages), stage, outcome.result, outcome.why, outcome.seconds
                )
            if any(outcome.result != "unchanged" for outcome in done):
                for line in lineage.register():
                    logger.info(line)
                create_markdown_artifact(pipeline.page.read_text(), key=pipeline.page.stem)
        return done


def variants(document: Mapping[str, Any]) -> set[str]:
    """Those that study/dvc.yaml has cells of: of their numbers in params.yaml a cell's params are one entry."""
    found: set[str] = set()
    for stage in document["stages"].values():
        for key in (key for file in stage["params"] for keys in file.values() for key in keys):
            if key.startswith("study.variants."):
                name = key.removeprefix("study.variants.")
                found |= set(stage["matrix"]["variant"]) if name == "${item.variant}" else {name}
    return found


def check_lengths(chosen: Params) -> None:
    """Raises ConfigError if rows are longer than the model takes: else its training or evaluation is where that is found.

    By its configuration alone, for torch takes seconds to import; RoBERTa and MPNet take two tokens less, as `plan` knows.
    """
    positions = inventory.source(chosen.common.model, chosen).facts().get("max_position_embeddings")
    if positions:
        chosen.check_lengths(positions)


def order(pipeline: Pipeline) -> list[str]:
    """Its stages and those they stand on, each after what it reads; those of one task in a row.

    The study is a DVC project of its own inside the pipeline's: DVC asks each project apart, and so do we.
    Raises PipelineError if there are none.
    """
    with trouble.plainly("a pipeline that DVC can read"), Repo(str(pipeline.folder)) as repo:
        own = _of(repo, lambda stage: stage.path_in_repo == "dvc.yaml")  # not what a person tracks beside it
        if not own:
            file = pipeline.folder / "dvc.yaml"
            raise PipelineError(f"expected stages in {file}, found none. Get it back with: git checkout -- {file}")
        if pipeline.folder == COMPRESS.folder:
            return _sorted(own)
        read = {Path(dep.fs_path) for stage in own for dep in stage.deps}
        mine = _sorted(own)
    with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
        return [*_sorted(_of(repo, lambda s: any(_meet(Path(o.fs_path), path) for o in s.outs for path in read))), *mine]


def _of(repo: Repo, wanted: Callable[[Any], bool]) -> Any:
    """The wanted stages and those they stand on: a graph, from a stage to what it reads."""
    graph = repo.index.graph
    near = [stage for stage in graph if wanted(stage)]
    return graph.subgraph({stage for one in near for stage in (one, *networkx.descendants(graph, one))})


def _meet(one: Path, other: Path) -> bool:
    """Whether they are one path, or one lies in the other."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def _sorted(graph: Any) -> list[str]:
    stages = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: _rank(stage.addressing))
    return [stage.addressing for stage in stages]


def _rank(name: str) -> tuple[int, str, str]:
    """The paper's order: what serves all tasks first, then task by task."""
    base, _, item = name.partition("@")
    shared = base in ("fetch", "fetch_local", "prepare_task", "prepare_corpus", "prepare_teacher", "sparsify")
    return (0, name, "") if shared else (1, item or "~", name)


@contextmanager
def parent_run(pipeline: Pipeline, stages: list[str], parameters: dict[str, str], done: list[Outcome]) -> Iterator[None]:
    """One MLflow run over this flow run, its stages' runs below it; none if there is nothing to do."""
    if not pending(stages):
        yield
        return
    from pipeline import tracking  # MLflow takes seconds to import

    run_id = tracking.start_flow(pipeline.name, parameters)
    os.environ[tracking.PARENT] = run_id
    status = "KILLED"  # unless we learn otherwise: Ctrl-C and Prefect's cancellation are no Exception
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        del os.environ[tracking.PARENT]
        note = pipeline.page.read_text() if status == "FINISHED" else ""
        tracking.end_flow(run_id, status, {outcome.stage: outcome.seconds for outcome in done}, note)


def pending(stages: list[str]) -> bool:
    """Whether any of the stages would run or be restored."""
    for folder, names in itertools.groupby(stages, lineage.project):
        with trouble.plainly("a pipeline whose state DVC can tell"), Repo(str(folder)) as repo:
            if repo.status(targets=list(names), with_deps=False):
                return True
    return False


def show(page: Path, outcomes: list[Outcome], seconds: float) -> None:
    """The closing tables: what each stage did, and what was measured."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("stage", "outcome", "why", "seconds", title="Stages")
    for o in outcomes:
        table.add_row(o.stage, o.result, "" if o.result == "unchanged" else o.why, f"{o.seconds:.1f}")
    console.print(table)
    console.print(Markdown(page.read_text()))
    ran = sum(o.result == "ran" for o in outcomes)
    console.print(f"{ran} of {len(outcomes)} stages ran in {seconds:.0f} s. The table is in {page}.")


def to_commit() -> list[str]:
    """How to keep the run in git, a line each; none where git has it as it stands."""
    changed = [path for path in KEPT if Path(path).exists() and _git("status", "--porcelain", "--", path)]
    if not changed:
        return []
    return [
        "To keep this run in git, so that the next profile can take its place:",
        f"  git add {' '.join(changed)} && git commit -m 'a run'",
    ]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True).stdout


def main() -> None:
    """The command line of the flow. Every error a user can meet ends in one line and a non-zero exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=("compress", "study"), default="compress", help="default: compress")
    parser.add_argument("--profile", help="a file of profiles/ without its suffix; default: params.yaml as it stands")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="change one parameter")
    with flushed_output():
        args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        profiles.check(args.profile, args.set)  # before Prefect starts a server, which takes seconds
        say_errors_once()
        processes.guard()
        trouble.check_prefect()
        outcomes = (study if args.pipeline == "study" else compress)(args.profile, args.set)
    except PruneOnceError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not trouble.no_server(error):
            raise
        sys.exit(f"\nPipelineError: {trouble.unreachable(error)}")
    with flushed_output():
        show((STUDY if args.pipeline == "study" else COMPRESS).page, outcomes, time.monotonic() - began)
        for line in to_commit():
            print(line)


if __name__ == "__main__":
    main()
