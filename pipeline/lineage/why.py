"""Why a stage would run: what changed, from what to what, and what it took the last time."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.git import said
from pipeline.lineage import git, places
from pipeline.lineage.blocks import Block, defined, value_of
from pipeline.lineage.changes import Change, Workspace
from pipeline.lineage.facts import no_store
from pipeline.lineage.graph import is_code
from pipeline.tracking.address import shown
from pipeline.tracking.lock import PIPELINE, Stage, locked, meet, short
from pruneonce.errors import DataError, TrackerUnreachable

FORMAT = 1
LONGEST = 60  # characters of a value


@dataclass
class Reason:
    """A stage and why it would run. upstream: the nearest stages that would run before, on whose outs it then depends."""

    stage: str
    changes: list[Change]
    words: list[str]
    upstream: list[str] = field(default_factory=list)
    seconds: float | None = None
    run: str = ""


def reasons(*, studies: bool = False) -> dict[str, Reason]:
    """Every stage that would run, or may, in the order in which they would. studies: those of the studies too."""
    blocks, stages, folder = defined(), locked(), Workspace()
    found: dict[str, Reason] = {}
    for block in blocks.values():
        if block.project != PIPELINE and not studies:
            continue
        changes = folder.changes(block, stages.get(block.name))
        direct = [name for name in found if _feeds(blocks[name], block)]
        upstream = [name for name in direct if not any(_feeds(blocks[name], blocks[other]) for other in direct)]
        if changes or direct:
            words = list(explained(block, stages.get(block.name), changes, blocks))
            found[block.name] = Reason(block.address, changes, words, upstream)
    return found


def _feeds(maker: Block, reader: Block) -> bool:
    return any(meet(out, dep) for out in maker.outs for dep in reader.deps)


def of(stage: str) -> Reason | None:
    """Why this stage would run; None if it would not. Raises DataError if dvc.yaml has no such stage."""
    blocks = defined()
    names = list(blocks)
    if short(stage) not in names:
        near = [name for name in names if name.partition("@")[0] == short(stage).partition("@")[0]]
        raise DataError(
            f"expected a stage of dvc.yaml, found {stage!r}. There is e.g. {', '.join((near or names)[:8]) or 'none'}."
        )
    return reasons(studies=blocks[short(stage)].project != PIPELINE).get(short(stage))


def explained(block: Block, stage: Stage | None, changes: Sequence[Change], blocks: Mapping[str, Block]) -> Iterator[str]:
    """The changes in words: what a person changed comes before the data that follow from it.

    Outs are named only if nothing else changed: they follow too.
    """
    causes = [change for change in changes if change.kind != "out"] or changes
    for change in sorted(causes, key=lambda c: (c.kind == "dep", c.kind == "dep" and not is_code(c.name))):
        match change.kind:
            case "first":
                yield "its first run: it has no entry in dvc.lock"
            case "command":
                yield "its command in dvc.yaml changed"
            case "param":
                yield from _param(change)
            case "dep":
                yield _dep(change, block, blocks)
            case "out":
                yield _out(change)


def told(address: str, states: Sequence[tuple[str, str, str]]) -> list[str]:
    """What DVC says of a stage, in words. states: (command, dep, param or out; its name; DVC's word for it)."""
    blocks, stage, folder = defined(), locked().get(short(address)), Workspace()
    block = blocks[short(address)]
    if stage is None:
        return list(explained(block, stage, [Change("first")], blocks))
    return list(explained(block, stage, [_known(folder, block, stage, *state) for state in states], blocks))


def _known(folder: Workspace, block: Block, stage: Stage, kind: str, name: str, state: str) -> Change:
    """A difference that DVC names, with the values of before and now. No file is read for it."""
    if kind == "param":
        new = value_of(folder.values(block.params[name]), name)[1] if name in block.params else None
        return Change("param", name, state, stage.params.get(name), new)
    path = posixpath.normpath(block.project / name)
    path = path if path in stage.deps or path in stage.outs else name
    if kind == "dep":
        return Change("dep", path, state, stage.deps.get(path))
    return Change("out", path, state, stage.outs.get(path)) if kind == "out" else Change("command")


def _made(path: str, maker: Block) -> bool:
    return any(meet(out, path) for out in maker.outs)


def _param(change: Change) -> Iterator[str]:
    """`sparsify.sparsity: 0.85 -> 0.9`, for each key below."""
    if change.state == "new":
        yield f"parameter {change.name} is new: {_short(change.new)}"
    elif change.state == "deleted":
        yield f"parameter {change.name} is gone; it was {_short(change.old)}"
    else:
        yield from (f"parameter {line}" for line in _differences(change.name, change.old, change.new))


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            if key not in new:
                yield f"{name}.{key} is gone; it was {_short(old[key])}"
            elif key not in old:
                yield f"{name}.{key} is new: {_short(new[key])}"
            elif old[key] != new[key]:
                yield from _differences(f"{name}.{key}", old[key], new[key])
    else:
        yield f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _dep(change: Change, block: Block, blocks: Mapping[str, Block]) -> str:
    makers = [name for name, other in blocks.items() if name != block.name and _made(change.name, other)]
    if is_code(change.name) and not makers:
        return _code(change)
    by = f", which {', '.join(makers[:3])}{' and others' if len(makers) > 3 else ''} wrote," if makers else ""
    words = {"new": "is a new dep", "deleted": "is not here"}.get(change.state)
    if words is None:
        words = f"changed: {change.old} -> {change.new}" if change.new else "changed"
    return f"data {change.name}{by} {words}"


def _code(change: Change) -> str:
    """`code pruneonce/engine.py: 3 lines changed since commit 1234567`."""
    if change.state in ("new", "deleted"):
        return f"code {change.name} {'is a new dep' if change.state == 'new' else 'is not here'}"
    commit = places.commit_with(change.name, change.old) if change.old else None
    if commit is None:
        return f"code {change.name} changed; no commit has what it ran with (md5 {change.old})"
    stat = said("diff", "--numstat", commit, "--", change.name) or ""
    rows = [line.split("\t") for line in stat.splitlines()]
    count = sum(int(n) for row in rows for n in row[:2] if n.isdigit())
    more = f" in {len(rows)} files" if len(rows) > 1 else ""
    return f"code {change.name}: {count} {'line' if count == 1 else 'lines'} changed{more} since commit {git.dated(commit)}"


def _out(change: Change) -> str:
    match change.state:
        case "deleted":
            return f"out {change.name} is not here; DVC takes it from its cache if that has it"
        case "new":
            return f"out {change.name} is new in dvc.yaml"
        case "not in cache":
            return f"out {change.name} is not in DVC's cache"
        case _:
            return f"out {change.name} was changed after the stage wrote it: {change.old} -> {change.new}"


def with_costs(found: Mapping[str, Reason]) -> str:
    """Set what the newest run of each stage took. Returns why MLflow does not know; else empty."""
    if no_store():
        return f"no MLflow store at {shown()}"
    from pipeline.tracking import asked  # imports MLflow, which takes seconds

    try:
        runs = asked.last(found)
    except TrackerUnreachable as error:
        return str(error)
    for name, run in runs.items():
        found[name].seconds, found[name].run = run.seconds, run.id
    return ""


def lines(found: Mapping[str, Reason], problem: str) -> Iterator[str]:
    """A line for each stage, with its first reason; then their number and time."""
    width = max((len(reason.stage) for reason in found.values()), default=0) + 2
    for reason in found.values():
        first, *more = reason.words or [f"only if {_some(reason.upstream)} changes its outs"]
        rest = f", and {len(more)} more" if more else ""
        yield f"{reason.stage.ljust(width)}{_took(reason).ljust(10)}{first}{rest}"
    surely = sum(bool(reason.changes) for reason in found.values())
    known = [reason.seconds for reason in found.values() if reason.seconds is not None]
    time = f" Last time {len(known)} of them took {sum(known):.0f} s." if known else ""
    yield f"{surely} would run, {len(found) - surely} may, if what runs before changes its outs.{time}"
    if problem:
        yield f"(times are not known: {problem})"


def page(reason: Reason, problem: str) -> Iterator[str]:
    """All reasons of one stage."""
    upstream = _some(reason.upstream)
    if reason.changes:
        yield f"{reason.stage} would run:"
        yield from (f"  {line}" for line in reason.words)
        if upstream:
            yield f"  and {upstream} would run before"
    else:
        yield f"{reason.stage} is as in dvc.lock. It would run if {upstream}, which would run before, changes its outs."
    run = f" (run {reason.run[:8]})" if reason.run else f" ({problem})" if problem else ""
    yield f"last time it took: {_took(reason)}{run}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


def _took(reason: Reason) -> str:
    return "unknown" if reason.seconds is None else f"{reason.seconds:.0f} s"


def document(found: Mapping[str, Reason], problem: str) -> dict[str, Any]:
    """The reasons as data."""
    return {
        "format": FORMAT,
        "stages": [
            {
                "stage": reason.stage,
                "runs": "yes" if reason.changes else "if an upstream stage changes its outs",
                "changes": [vars(change) for change in reason.changes],
                "words": reason.words,
                "upstream": reason.upstream,
                "last_seconds": reason.seconds,
                "last_run": reason.run or None,
            }
            for reason in found.values()
        ],
        "mlflow": problem or None,
    }
