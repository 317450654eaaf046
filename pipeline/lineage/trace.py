"""Where a file came from, back to the sources; and what was made from it. What `pruneonce trace` prints."""

from collections.abc import Iterator
from typing import Any

from pipeline.lineage import forward as forwards
from pipeline.lineage import printing, structure
from pipeline.lineage.facts import Facts, gather, no_store
from pipeline.lineage.graph import behind
from pipeline.lineage.identify import Identify
from pipeline.lineage.lookup import Subject
from pipeline.tracking.address import shown
from pruneonce.errors import TrackerUnreachable


def found(asked: str) -> tuple[list[Subject], Facts]:
    """The subjects, and what is known of the stages behind them. Raises DataError."""
    identify = Identify()
    subjects = identify.subjects(asked)
    nodes = behind([root for subject in subjects for root in subject.roots])
    if identify.look.problem:
        return subjects, Facts(problem=f"MLflow's runs are unknown: {identify.look.problem}")
    return subjects, gather(nodes)


def short(asked: str) -> Iterator[str]:
    yield from printing.short(*found(asked))


def full(asked: str) -> Iterator[str]:
    yield from printing.full(*found(asked))


def mermaid(asked: str) -> Iterator[str]:
    yield from structure.mermaid(*found(asked))


def document(asked: str) -> dict[str, Any]:
    return structure.document(*found(asked))


def forward(asked: str, *, full: bool) -> Iterator[str]:
    """full: with the stages of the studies, and all that only older lock files have."""
    made, problem = _made(asked)
    for each in made:
        yield from forwards.lines(each, full=full)
    if problem:
        yield f"({problem})"


def forward_mermaid(asked: str) -> Iterator[str]:
    for each in _made(asked)[0]:
        yield from forwards.mermaid(each)


def made_from(asked: str) -> dict[str, Any]:
    made, problem = _made(asked)
    return {"format": structure.FORMAT, "made": [forwards.document(each) for each in made], "mlflow": problem or None}


def _made(asked: str) -> tuple[list[forwards.Made], str]:
    """What was made from each subject, and why the registry is not known."""
    identify = Identify()
    made = [forwards.of(subject, identify.look.history) for subject in identify.subjects(asked)]
    if no_store():
        return made, f"no MLflow store at {shown()}: registered versions are not shown"
    from pipeline.tracking import asked as registry  # imports MLflow, which takes seconds

    try:
        for each in made:
            each.registered = registry.versions_of(forwards.md5s(each))
    except TrackerUnreachable as error:
        return made, f"MLflow's registered versions are unknown: {error}"
    return made, ""
