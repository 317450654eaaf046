"""Take over what another machine computed. The folder that merges is the only writer of its dvc.lock.

Nothing is believed: the paths must be those of dvc.yaml, the small files and the outs must have the md5s of the entry, and
afterwards DVC must find the stage unchanged.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from flows import keeping, restoring, units
from flows.units import LOCK, RanOn, Unit
from pruneonce.errors import DataError, PipelineError
from pruneonce.files import sync


def merge(unit: Unit, results: Mapping[str, Mapping[str, Any]], ready: Collection[str] = ()) -> list[RanOn]:
    """Take over the results of the unit's stages in order, up to the first that is missing or of another key.

    ready: stages that are up to date here already.

    Raises DataError for other bytes than were promised, PipelineError if they are not to be had. dvc.lock is then as before.
    """
    done: list[RanOn] = []
    for stage in (stage for stage in unit.stages if stage not in ready):
        result = results.get(stage)
        if result is None or result.get("key") != unit.key:
            break
        take_over(stage, result)
        done.append(RanOn(stage, result["result"], result["why"], result["seconds"], result["where"]))
    return done


def take_over(stage: str, result: Mapping[str, Any]) -> None:
    """Write one stage's entry of dvc.lock and its small files, and get its outs."""
    with Repo() as repo:
        small = _checked(repo, stage, result)
        before = write_entry(repo, stage, dict(result["entry"]))
    try:
        for path, text in small.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(text.encode())
        _fetch(stage, str(result["where"]))
    except BaseException:
        with Repo() as repo:
            write_entry(repo, stage, before)
        raise


def write_entry(repo: Repo, stage: str, entry: Any) -> Any:
    """Put the entry of a stage into dvc.lock, None for none; return the one before. A kill leaves the old or new file."""
    with repo.lock:
        document = parse_yaml_for_update(LOCK.read_text(encoding="utf-8"), str(LOCK)) if LOCK.exists() else {}
        stages = document.setdefault("stages", {})
        before = stages.pop(stage, None) if entry is None else stages.get(stage)
        if entry is not None:
            document.setdefault("schema", "2.0")
            stages[stage] = entry
        if not stages and set(document) <= {"schema", "stages"}:
            LOCK.unlink(missing_ok=True)
            return before
        part = LOCK.with_name(f"{LOCK.name}.part")
        try:
            part.write_text(dumps_yaml(document), encoding="utf-8")
            sync(part)
            part.replace(LOCK)
        finally:
            part.unlink(missing_ok=True)
    return before


def _checked(repo: Repo, stage: str, result: Mapping[str, Any]) -> dict[str, str]:
    """The small files of a result by path, if all of the result is as the stage and the entry say."""
    recorded = units.recorded(stage, result)
    (own,) = repo.stage.collect(stage)
    if recorded.keys() != {units.path_of(out) for out in own.outs}:
        raise DataError(f"expected the outs of {stage} that dvc.yaml has, found {sorted(recorded)} from {result['where']}.")
    small = {units.path_of(out) for out in own.outs if not out.use_cache}
    if missing := small - result["files"].keys():
        raise DataError(f"expected {', '.join(sorted(missing))} of {stage} from {result['where']}, found none.")
    for path in small:
        units.check_text(path, result["files"][path], recorded[path], result["where"])
    return {path: result["files"][path] for path in small}


def _fetch(stage: str, where: str) -> None:
    """Get the outs of a stage whose entry is in dvc.lock; check all of it; keep it in DVC's run cache as if it ran here."""
    with Repo() as repo:
        try:
            restoring.fetch(repo, [stage])
        except DvcException as error:
            raise PipelineError(
                f"expected the outs of {stage}, which {where} computed, in DVC's remote, found: {error}. Run again."
            ) from None
    with Repo() as repo:
        keeping.check_restored(repo, stage)
        if changes := repo.status(targets=[stage], with_deps=False):
            raise PipelineError(f"expected {stage} of {where} to be what this folder asks for, found: {changes}. Run again.")
        (own,) = repo.stage.collect(stage)
        own.save_deps()
        repo.stage_cache.save(own)
