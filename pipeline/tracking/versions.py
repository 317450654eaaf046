"""What a version of the registry says of itself: tags, its answers to the test split, and the other seeds of its params."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.hashing import file_md5
from pipeline.tracking import committed
from pipeline.tracking.lock import Stage

ANSWERS = "answers"  # tag: where the file of answers is kept; and the folder of it in the run
SEED, RECIPE, SPLIT = "seed", "recipe", "test_md5"  # tags


def model(task: str) -> str:
    """The name of a task's registered model."""
    return f"pruneonce-{task}"


def tags(stages: Mapping[str, Stage], task: str) -> dict[str, str]:
    """What a version is made from: the commit, whether files differed from it, the profile, the seed, the other parameters.

    recipe: a digest of all parameters but the seed. Versions with the same recipe differ by their seeds and their data.
    """
    params = {stage.name: dict(stage.params) for stage in committed.lineage(stages, f"evaluate@{task}")}
    seeds = set()
    for section in params.values():
        if isinstance(common := section.get("common"), Mapping):
            seeds.add(common.get("seed"))
            section["common"] = {key: value for key, value in common.items() if key != "seed"}
    recipe = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode()).hexdigest()[:16]
    experiment = committed.experiment()
    return {
        "git_commit": committed.head() or "none",
        "dirty": str(bool(committed.edited())).lower(),
        "profile": committed.profile(),
        **({"experiment": experiment} if experiment else {}),
        **({SEED: str(*seeds)} if len(seeds) == 1 else {}),
        RECIPE: recipe,
    }


def complete(client: MlflowClient, version: ModelVersion, stages: Mapping[str, Stage], task: str) -> None:
    """Tag a version that an earlier release registered with what dvc.lock tells of its file, and keep its answers."""
    for key in (SEED, RECIPE):
        if RECIPE not in version.tags and (value := tags(stages, task).get(key)):
            client.set_model_version_tag(version.name, version.version, key, value)
    _keep_answers(client, version, stages, task)


def _keep_answers(client: MlflowClient, version: ModelVersion, stages: Mapping[str, Stage], task: str) -> None:
    """Keep data/answers of the task beside the version's model, if it has none yet and the file is the one of dvc.lock.

    So a later comparison needs neither DVC's cache nor the test split.
    """
    name = f"{task}.json"
    found = {Path(path): md5 for path, md5 in stages[f"evaluate@{task}"].outs.items()}
    path = next((path for path in found if path.parent.name == ANSWERS and path.name == name), None)
    if ANSWERS in version.tags or path is None or not path.exists() or file_md5(path) != found[path]:
        return
    client.log_artifact(version.run_id, str(path), ANSWERS)
    split = json.loads(path.read_text(encoding="utf-8"))[SPLIT]
    for key, value in ((SPLIT, split), (ANSWERS, f"runs:/{version.run_id}/{ANSWERS}/{name}")):
        client.set_model_version_tag(version.name, version.version, key, value)
        version.tags[key] = value


def answers(client: MlflowClient, version: ModelVersion) -> dict[str, Any] | None:
    """The answers that were kept of a version; None if there are none."""
    run_id, _, place = version.tags.get(ANSWERS, "").removeprefix("runs:/").partition("/")
    if not place:
        return None
    try:
        return dict(json.loads(Path(client.download_artifacts(run_id, place)).read_text(encoding="utf-8")))
    except (MlflowException, OSError, ValueError):  # the run was deleted, or its folder
        return None


def find(client: MlflowClient, task: str, md5: str) -> ModelVersion | None:
    """The version of a file."""
    found = [v for v in client.search_model_versions(f"name='{model(task)}'") if v.tags.get("md5") == md5]
    return found[0] if found else None


@dataclass(frozen=True)
class Seeds:
    """The scores of one recipe by its seeds."""

    scores: Mapping[str, float]

    @property
    def spread(self) -> float:
        """The standard deviation."""
        return statistics.stdev(self.scores.values())

    def words(self) -> str:
        """Mean and spread, in one sentence."""
        values = self.scores.values()
        return (
            f"{len(values)} seeds of these parameters: {statistics.fmean(values):.2%} on average, standard deviation "
            f"{100 * self.spread:.2f} points ({min(values):.2%} to {max(values):.2%}). A smaller difference than theirs may "
            "be the seed's."
        )


def seeds(of: ModelVersion, known: Sequence[ModelVersion]) -> Seeds | None:
    """The newest version of each seed of this version's recipe; None if there is one seed alone."""
    same = [v for v in known if v.tags.get(RECIPE, "") == of.tags.get(RECIPE, None)]
    scored = sorted((v for v in same if {SEED, "score"} <= set(v.tags)), key=lambda v: int(v.version))
    scores = {v.tags[SEED]: float(v.tags["score"]) for v in scored}
    return Seeds(scores) if len(scores) > 1 else None
