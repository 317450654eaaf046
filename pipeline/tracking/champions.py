"""The alias that marks what is deployed, and its history: who moved it, when, from what to what, and why.

The history is a JSON list in a tag of the registered model, which MLflow's page shows. Each move is also a tag of the
version that the alias moved to. The alias itself is what counts: after a move by hand, on MLflow's page, the next move
goes on from there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.tracking import versions
from pipeline.tracking.address import shown
from pipeline.tracking.runs import origin
from pipeline.tracking.store import refused, store
from pruneonce.errors import PipelineError

ALIAS = "champion"
PROMOTION, ROLLBACK = "promotion", "rollback"
MOST_CHARACTERS = 4900  # of a tag of a registered model; MLflow's databases take 5000. The oldest moves are left out
LONGEST_WHY = 300


@dataclass(frozen=True)
class Move:
    """One move of the alias. old, new: versions; old is None for the first one."""

    when: str
    who: str
    action: str
    old: str | None
    new: str
    why: str
    commit: str


def history(client: MlflowClient, model: str, alias: str = ALIAS) -> list[Move]:
    """The moves, oldest first; those that a hand has damaged are left out."""
    names = {field.name for field in fields(Move)}
    try:
        entries = json.loads(client.get_registered_model(model).tags.get(f"{alias}.history", "[]"))
    except (ValueError, RecursionError):
        return []
    if not isinstance(entries, list):
        return []
    return [Move(**each) for each in entries if isinstance(each, dict) and set(each) == names]


def champion(client: MlflowClient, model: str, alias: str = ALIAS) -> str | None:
    """The version that has the alias; None if there is none, or no such model."""
    try:
        found = client.get_registered_model(model).aliases.get(alias)
    except MlflowException as error:
        if not refused(error):
            raise
        return None
    return None if found is None else str(found)


def move(client: MlflowClient, model: str, alias: str, new: str, action: str, why: str) -> Move:
    """Put the alias on a version, and write that into the history."""
    by = origin("")
    made = Move(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=by["mlflow.user"],
        action=action,
        old=champion(client, model, alias),
        new=new,
        why=why[:LONGEST_WHY],
        commit=by["mlflow.source.git.commit"],
    )
    before = history(client, model, alias)
    client.set_registered_model_alias(model, alias, new)  # first: without it the rest would tell what did not happen
    client.set_registered_model_tag(model, f"{alias}.history", _text([*before, made]))
    client.set_model_version_tag(model, new, f"{alias}.since", f"{made.when} {action} by {made.who}: {made.why}")
    if made.old and made.old != new:
        client.set_model_version_tag(model, made.old, f"{alias}.until", f"{made.when} {action} by {made.who}")
    return made


def _text(moves: Sequence[Move]) -> str:
    """The newest moves, as many as a tag holds."""
    text = json.dumps([asdict(each) for each in moves], ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS or len(moves) == 1 else _text(moves[1:])


def before(moves: Sequence[Move], now: str) -> list[str]:
    """The versions to go back to, the latest one last: a promotion adds one, a rollback takes one away.

    now: the version that has the alias.
    """
    past: list[str] = []
    for each in moves:
        if each.action == ROLLBACK:
            while past and past.pop() != each.new:  # also over versions that were deleted meanwhile
                pass
        elif each.old is not None and each.old != each.new:
            past.append(each.old)
    if moves and moves[-1].new != now:  # by hand
        past.append(moves[-1].new)
    return [version for version in past if version != now]


def rollback(task: str, alias: str = ALIAS, why: str = "") -> str:
    """Put the alias back on the version that had it before. Called again, it goes further back.

    Returns a line that says from what to what. Raises PipelineError if there is none before, or no champion.
    """
    model = versions.model(task)
    with store() as (client, _):
        now = champion(client, model, alias)
        if now is None:
            raise PipelineError(
                f"expected a version with the alias {alias} in models:/{model} of MLflow at {shown()}, found none. "
                f"Promote one: pruneonce promote {task}"
            )
        moves = history(client, model, alias)
        past = [version for version in before(moves, now) if _exists(client, model, version)]
        if not past:
            raise PipelineError(
                f"expected a version that was {alias} of models:/{model} before version {now}, found none in its history "
                f"of {len(moves)} moves. Nothing was changed."
            )
        made = move(client, model, alias, past[-1], ROLLBACK, why or f"back from version {now}")
        score = client.get_model_version(model, made.new).tags.get("score")
        of = f", score {float(score):.2%}" if score else ""
        return f"models:/{model}@{alias}: version {now} -> {made.new}{of}"


def _exists(client: MlflowClient, model: str, version: str) -> bool:
    """Whether the version was not deleted."""
    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if not refused(error):
            raise
        return False
    return True
