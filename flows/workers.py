"""The branches of a run on many machines: what workers must know, what need not be computed, the rest as units of work."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows import commits, handing, merging, restoring, trouble, units
from flows.failures import Failures, in_words
from flows.handing import Handed
from flows.repro import Outcome
from flows.units import KERNELS, Team, Unit
from pipeline.tracking import handover
from pruneonce.errors import DataError, PipelineError


def team(*more: str) -> Team:
    """What the workers need to know. more: paths that they read beside the code.

    Raises PipelineError if they could not work: before anything is computed.
    """
    if get_current_settings().api.url is None:
        raise PipelineError(
            "expected a Prefect server that the workers ask for work, found none. Start one: prefect server start; and name "
            "it: prefect config set PREFECT_API_URL=http://SERVER:4200/api"
        )
    commit = commits.head(*more)
    repository = commits.repository(commit)
    with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
        remote = units.remote_of(repo)
    if remote is None:
        raise PipelineError(
            "expected a DVC remote, through which the machines exchange models, found none. Set one: "
            "dvc remote add --local --default storage s3://BUCKET/dvc; a folder that all machines see will do too."
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(handing.DEPLOYMENT)
    except ObjectNotFound:
        raise PipelineError(
            f"expected the deployment {handing.DEPLOYMENT} on the Prefect server, found none. Make it: "
            "prefect deploy --name branch"
        ) from None
    return Team(commit, repository, remote, KERNELS.exists())


def work_off(
    given: Mapping[str, list[str]], parent: str, team: Team, *, retries: int, done: Callable[[Outcome], object]
) -> None:
    """Have stages computed by workers. given: name -> stages, whose deps are up to date. parent: the MLflow run above.

    done: takes the outcome of each stage that was computed or restored, as soon as that is known.
    Raises StageFailed, after all others came back, if a unit failed.
    """
    failures = Failures()
    with handing.cancelled_at_the_end() as handed:
        for name, stages in given.items():
            ready: set[str] = set()
            try:
                for outcome in without_computing(name, stages, parent, team):
                    ready.add(outcome.stage)
                    done(outcome)
                if len(ready) < len(stages):
                    handed.append(give(make(name, stages, parent, team), parent, ready, tries=retries))
            except Exception as error:
                failures.note(name, in_words(error), how="was not handed out")
        handing.collect(handed, merging.merge, done, failures)


def give(unit: Unit, run: str, ready: set[str], *, tries: int) -> Handed:
    """Push what the unit reads, and hand it out. run: the MLflow run for its artifacts. ready: its stages that are done."""
    push(unit.stages, ready)
    return handing.hand_out(unit, run, ready=ready, tries=tries)


def without_computing(name: str, stages: list[str], parent: str, team: Team) -> Iterator[Outcome]:
    """Bring the first stages of a unit up to date: from DVC's cache, its remote, or what came back to an earlier run."""
    ready: set[str] = set()
    for stage in stages:
        outcome = restoring.restored(stage)
        if outcome is None:
            break
        ready.add(stage)
        yield outcome
    if len(ready) == len(stages):
        return
    unit = make(name, stages, parent, team)
    for run, named in handover.runs_with(unit.key):
        with suppress(DataError, PipelineError):  # the remote may have lost them since
            for outcome in merging.merge(unit, handover.results(run, named), ready):
                ready.add(outcome.stage)
                yield outcome


def make(name: str, stages: list[str], parent: str, team: Team) -> Unit:
    """The unit of these stages, as this folder is now."""
    with trouble.plainly(f"DVC to say what {name} is made of"), Repo() as repo:
        return units.unit(repo, name, stages, parent=parent, team=team)


def push(stages: list[str], ready: set[str]) -> None:
    """Push what a unit of these stages reads. ready: those of them that are up to date already."""
    with trouble.plainly("a DVC remote that takes what the workers read", trouble.REACH), Repo() as repo:
        needed = [units.path_of(out) for out in units.reads(repo, stages) if out.use_cache]
        if targets := [*needed, *sorted(ready)]:
            repo.push(targets=targets)
