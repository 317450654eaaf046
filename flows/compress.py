"""Compress one language model: every DVC stage as one Prefect task, in dependency order, tracked under one MLflow run.

`python -m flows.compress` runs params.yaml as it stands; `--profile tiny` another one; `--set sparsify.sparsity=0.9`
changes single numbers; `--pipeline study` or `patterns` runs a study, and the stages of the pipeline that it needs. The flow
shows the stages in order; `dvc repro` does the same work with the same bytes.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from flows import stopping

    stopping.listen()

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows import locks, trouble
from flows.order import COMPRESS, PATTERNS, STUDY, Pipeline, in_order, parts, pending, variants
from flows.repro import Outcome, quiet_logs, repro, say_errors_once
from flows.showing import results, show, to_commit
from flows.units import RanOn
from pipeline import processes
from pipeline.params import profiles
from pipeline.params.document import Params
from pipeline.params.reading import read_yaml
from pipeline.plan import inventory
from pipeline.stopping import PARENT
from pruneonce.errors import PruneOnceError
from pruneonce.terminal import flushed_output

LOCK = Path(".pruneonce/run.lock")
Helpers = Callable[[Mapping[str, list[str]], Callable[[Outcome], object]], None]


@flow(name="compress", validate_parameters=True, persist_result=False, log_prints=False)
def compress(profile: str | None = None, overrides: list[str] | None = None, workers: bool = False) -> list[Outcome]:
    """Run every stage that something changed for.

    profile: a file of profiles/, or None for params.yaml as it stands. overrides: ["section.key=value", ...].
    workers: give the stages of each task to a worker of the pool; docs/machines.md.
    """
    return run(COMPRESS, profile, overrides or [], workers=workers)


@flow(name="study", validate_parameters=True, persist_result=False, log_prints=False)
def study(profile: str | None = None, overrides: list[str] | None = None) -> list[Outcome]:
    """What does pruning once buy? Run every cell of the study that something changed for, and the stages that it needs."""
    return run(STUDY, profile, overrides or [])


@flow(name="patterns", validate_parameters=True, persist_result=False, log_prints=False)
def patterns(profile: str | None = None, overrides: list[str] | None = None) -> list[Outcome]:
    """What does a pattern cost, and what does it buy? Run every cell that something changed for, and the stages it needs."""
    return run(PATTERNS, profile, overrides or [])


FLOWS: dict[str, tuple[Any, Pipeline]] = {
    "compress": (compress, COMPRESS),
    "study": (study, STUDY),
    "patterns": (patterns, PATTERNS),
}


def run(pipeline: Pipeline, profile: str | None, overrides: list[str], *, workers: bool = False) -> list[Outcome]:
    """The stages of the pipeline in order, inside a flow."""
    quiet_logs()
    # dvc.yaml says `python`: it must be this one, also where nobody activated its environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with processes.alone(LOCK, "run in this folder"):
        for line in locks.clear():
            get_run_logger().warning(line)
        chosen = profiles.select(profile, overrides)
        if pipeline is STUDY:
            chosen.check_study(variants(read_yaml(STUDY.folder / "dvc.yaml")) if chosen.study else ())
        elif pipeline is PATTERNS:
            chosen.check_patterns()
        helpers = helpers_of(chosen) if workers else None
        stages = in_order(pipeline)
        done: list[Outcome] = []
        with parent_run(pipeline, stages, {"profile": profile or "params.yaml", "overrides": " ".join(overrides)}, done):
            bring(stages, chosen, helpers, done)
            if any(outcome.result != "unchanged" for outcome in done):
                for line in register():
                    get_run_logger().info(line)
                create_markdown_artifact("\n\n".join(results(pipeline)), key=pipeline.page.stem)
        return done


def bring(stages: list[str], chosen: Params, helpers: Helpers | None, done: list[Outcome]) -> None:
    """Bring the stages up to date, in order; those of the tasks by helpers, if there are any."""

    def told(outcome: Outcome) -> None:
        done.append(outcome)
        where = f" on {outcome.where}" if isinstance(outcome, RanOn) else ""
        get_run_logger().info(
            "%d/%d %s: %s%s (%s) %.1f s",
            len(done), len(stages), outcome.stage, outcome.result, where, outcome.why, outcome.seconds,
        )  # fmt: skip

    first = next((stage for stage in stages if not stage.startswith("fetch")), "")  # by _rank, all sources are there
    found = parts(stages)
    for stage in stages:
        if stage == first:
            check_lengths(chosen)
        if helpers and stage == next(itertools.chain(*found.branches.values()), None):
            helpers(found.branches, told)
        if stage not in {outcome.stage for outcome in done}:
            told(repro.with_options(retries=chosen.machine.stage_retries)(stage))


def helpers_of(chosen: Params) -> Helpers:
    """What has the branches of a run computed by workers. Raises PipelineError if they could not work."""
    from flows import workers

    team = workers.team()

    def help_with(branches: Mapping[str, list[str]], told: Callable[[Outcome], object]) -> None:
        if parent := os.environ.get(PARENT):  # else no stage is pending
            workers.work_off(branches, parent, team, retries=chosen.machine.stage_retries, done=told)

    return help_with


def check_lengths(chosen: Params) -> None:
    """Raises ConfigError if rows are longer than the model takes: before it is trained.

    It reads the configuration alone, because torch takes seconds to import. RoBERTa and MPNet take two tokens less, which
    `plan` checks.
    """
    positions = inventory.source(chosen.common.model, chosen).facts().get("max_position_embeddings")
    if positions:
        chosen.check_lengths(positions)


def register() -> Iterator[str]:
    """Do what `pruneonce register` does, and yield its lines; an error is one line too."""
    from pipeline.tracking import registry  # imports MLflow, which takes seconds

    try:
        yield from registry.update()
    except PruneOnceError as error:
        yield f"Not all models were registered ({error}). Try again with: pruneonce register"


@contextmanager
def parent_run(pipeline: Pipeline, stages: list[str], parameters: dict[str, str], done: list[Outcome]) -> Iterator[None]:
    """One MLflow run over this flow run, with its stages' runs below it; none if no stage is pending."""
    if not pending(stages):
        yield
        return
    from pipeline.tracking import flow_runs  # imports MLflow, which takes seconds

    run_id = flow_runs.start_flow(pipeline.name, parameters, flow_run=str(flow_run.id or ""))
    os.environ[PARENT] = run_id
    status = "KILLED"  # Ctrl-C and Prefect's cancellation are no Exception
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        left = flow_runs.Finished(
            seconds={outcome.stage: outcome.seconds for outcome in done},
            outcomes={outcome.stage: outcome.result for outcome in done},
        )
        if status == "FINISHED":
            left = replace(left, note="\n\n".join(results(pipeline)), **_report(pipeline))
        del os.environ[PARENT]
        flow_runs.end_flow(run_id, status, left)


def _report(pipeline: Pipeline) -> dict[str, Any]:
    """What the report says in numbers, and its page. A study has neither."""
    from pipeline.tracking import flow_runs

    if pipeline != COMPRESS:
        return {}
    rows = json.loads(pipeline.page.with_suffix(".json").read_text())
    return {
        "scores": flow_runs.scores(rows),
        "files": [html] if (html := pipeline.page.with_suffix(".html")).exists() else [],
    }


def main() -> None:
    """The command line of the flow. Every error a user can meet ends in one line and a non-zero exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=tuple(FLOWS), default="compress", help="default: compress")
    parser.add_argument("--profile", help="a file of profiles/ without its suffix; default: params.yaml as it stands")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="change one parameter")
    parser.add_argument("--workers", action="store_true", help="each task on a worker of the pool; see docs/machines.md")
    with flushed_output():
        args = parser.parse_args()
        if args.workers and args.pipeline != COMPRESS.name:
            parser.error("--workers is for the pipeline `compress`")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with trouble.one_line():
        profiles.check(args.profile, args.set)  # before Prefect starts a server, which takes seconds
        say_errors_once()
        processes.guard()
        trouble.check_prefect()
        called, pipeline = FLOWS[args.pipeline]
        outcomes = compress(args.profile, args.set, workers=True) if args.workers else called(args.profile, args.set)
    with flushed_output():
        show(pipeline, outcomes, time.monotonic() - began)
        for line in to_commit():
            print(line)


if __name__ == "__main__":
    main()
