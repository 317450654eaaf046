"""May the model of dvc.lock become the champion? The gates, a paired test against the champion, and what git has.

Nothing is trained or evaluated here: the files in data/ are read, and the answers that the registry keeps of the champion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from pipeline import gates, paired
from pipeline.gates import Verdict
from pipeline.hashing import file_md5
from pipeline.params.document import load
from pipeline.params.sections import Gates
from pipeline.tracking import champions, committed, lock, registry, versions
from pipeline.tracking.address import shown
from pipeline.tracking.lock import Stage
from pipeline.tracking.store import store
from pruneonce.errors import DataError, PipelineError

INT8 = "int8"


@dataclass(frozen=True)
class Judgement:
    """What was found of a task's candidate. champion: the version that has the alias now."""

    task: str
    alias: str
    candidate: str
    champion: str | None
    verdicts: Sequence[Verdict]
    notes: Sequence[str]  # sentences on the comparison
    score: str

    @property
    def holds(self) -> bool:
        return not gates.failed(self.verdicts)

    @property
    def name(self) -> str:
        return f"models:/{versions.model(self.task)}@{self.alias}"

    def outcome(self, *, moved: bool) -> str:
        """One line: what became of the alias, and why."""
        now = f"version {self.champion}" if self.champion else "no version"
        broken = "; ".join(verdict.line() for verdict in gates.failed(self.verdicts))
        if self.candidate == self.champion:
            return f"{self.name} is version {self.candidate} already{f', and now fails: {broken}' if broken else ''}"
        if broken:
            return f"{self.name} stays at {now}, not version {self.candidate}: {broken}"
        line = f"{self.name}: {now} -> version {self.candidate}{'' if moved else ' would be promoted (dry run)'}"
        return ". ".join([line, *self.notes]).removesuffix(".")

    def page(self) -> list[str]:
        """The verdicts and notes as Markdown."""
        return [f"## {self.name}: version {self.candidate}", "", *gates.table(self.verdicts), "", *self.notes, ""]

    def lines(self) -> list[str]:
        """The same as text."""
        verdicts = [f"  {'holds ' if verdict.holds else gates.FAILED}  {verdict.line()}" for verdict in self.verdicts]
        return [f"{versions.model(self.task)}, version {self.candidate}", *verdicts, *(f"  {note}" for note in self.notes)]


def judge(task: str, *, alias: str = champions.ALIAS, accept_other_split: bool = False) -> Judgement:
    """The candidate is the version of dvc.lock's file; it is registered first if it is new.

    Raises PipelineError if it is not registered, or not made from what git has; DataError where data/ is not of dvc.lock.
    """
    params, stages = load(), lock.current()
    md5 = next((md5 for name, _, md5 in registry.evaluated(stages) if name == task), None)
    if md5 is None:
        raise PipelineError(f"expected an evaluated model of {task} in dvc.lock, found none. Make it with: pruneonce run")
    committed.check(stages, task)
    _check_files(stages, task)
    measured = gates.read(task)
    with store() as (client, _):
        list(registry.register(stages, only=task))
        candidate = versions.find(client, task, md5)
        if candidate is None:
            raise PipelineError(
                f"expected a version of md5 {md5} in models:/{versions.model(task)} of MLflow at {shown()}, found none. The "
                f"run that made it is in another tracking store: set MLFLOW_TRACKING_URI, or make the model here."
            )
        limits = params.gates_of(task)
        verdicts, notes = gates.of(measured, limits), []
        now = champions.champion(client, candidate.name, alias)
        if now is not None and now != str(candidate.version):
            old = client.get_model_version(candidate.name, now)
            found = _compared(client, candidate, old, measured.answers, limits, accept_other_split)
            verdicts, notes = [*verdicts, *found[0]], found[1]
        notes += _over_seeds(client, candidate)
        return Judgement(task, alias, str(candidate.version), now, verdicts, notes, f"{measured.scores[INT8]['score']:.2%}")


def promote(judged: Judgement, why: str = "") -> None:
    """Move the alias to a candidate that holds every gate and is not the champion yet."""
    if not judged.holds or judged.candidate == judged.champion:
        return
    reason = why or f"{len(judged.verdicts)} gates hold, score {judged.score}"
    with store() as (client, _):
        model = versions.model(judged.task)
        champions.move(client, model, judged.alias, judged.candidate, champions.PROMOTION, reason)


def _check_files(stages: Mapping[str, Stage], task: str) -> None:
    """Raises DataError if a file that the gates read is not the one of dvc.lock."""
    outs = {path: md5 for name in (f"export@{task}", f"evaluate@{task}") for path, md5 in stages[name].outs.items()}
    for path in gates.files(task).values():
        if outs.get(str(path)) != (file_md5(path) if path.exists() else None):
            raise DataError(
                f"expected {path} as dvc.lock has it, found another one or none. Get it with: dvc checkout {path}"
            )


def _compared(
    client: MlflowClient,
    candidate: ModelVersion,
    champion: ModelVersion,
    answers: Mapping[str, Any],
    limits: Gates,
    accept_other_split: bool,
) -> tuple[list[Verdict], list[str]]:
    """The verdict against the champion, and a sentence on it. Without a paired test only an accepted one holds."""
    kept = versions.answers(client, champion)
    if why := _incomparable(answers, kept):
        said = f"No paired test against version {champion.version}: {why}."
        verdict = Verdict(
            "most_drop_to_champion",
            "score against the champion",
            accept_other_split,
            limits.most_drop_to_champion,
            None,
            "a paired test, or --accept-other-split",
            f"none: {why}",
        )
        return [verdict], [said]
    assert kept is not None
    new, old = answers["variants"][INT8], kept["variants"][INT8]
    scores = [float(version.tags.get("score", "nan")) for version in (candidate, champion)]
    found = paired.difference(new, old, answers["metric"], (scores[0], scores[1]))
    note = f"Against version {champion.version} on the same {answers['rows']} rows: {found.words()}, {found.known()}."
    return [gates.to_champion(found, limits)], [note]


def _incomparable(answers: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str:
    """Why the two cannot be paired; empty if they can."""
    if kept is None:
        return "the registry keeps no answers of it"
    if kept["test_md5"] != answers["test_md5"] or kept["metric"] != answers["metric"]:
        return (
            f"the test splits differ (md5 {kept['test_md5'][:8]} and {answers['test_md5'][:8]})"
            if kept["metric"] == answers["metric"]
            else f"its metric is {kept['metric']}, not {answers['metric']}"
        )
    new, old = answers["variants"][INT8], kept["variants"][INT8]
    counted = answers["metric"] == paired.ACCURACY and new["right"] and old["right"]
    if not counted and len(new["replicates"]) != len(old["replicates"]):
        return "their resamples are not the same rows: evaluate.resamples differs"
    return ""


def _over_seeds(client: MlflowClient, candidate: ModelVersion) -> list[str]:
    """A sentence on the scores of the candidate's parameters with other seeds, if there are any."""
    found = versions.seeds(candidate, client.search_model_versions(f"name='{candidate.name}'"))
    return [found.words()] if found else []
