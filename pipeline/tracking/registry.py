"""MLflow's model registry: the int8 file of every task, packed; unpacked, it is byte for byte the one that DVC tracks.

Each task has one registered model, `pruneonce-<task>`, and each file one version. The version is tagged with the file's md5
and measurements, linked to the run that exported it, and keeps its answers to the test split. The alias `current` is the
version that dvc.lock names, if that was made from what git has (`committed`).
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from pipeline.hashing import file_md5
from pipeline.tracking import champions, packaging, versions
from pipeline.tracking.committed import obstacle
from pipeline.tracking.lock import Stage, current
from pipeline.tracking.runs import catch_up, results, runs_of
from pipeline.tracking.store import store

HISTORY = "mlflow.log-model.history"  # tag of a run: MLflow's own list of the models in it
FILE = "int8.onnx"  # the out of an export stage that is deployed
ALIAS = "current"
MEASURED = ("score", "sparsity", "file_bytes", "packed_bytes")


def update() -> Iterator[str]:
    """Send what MLflow is still to have, close the runs of lost processes, register the models of dvc.lock.

    Yields a line for each change. Raises PruneOnceError.
    """
    yield from catch_up()
    yield from register(current())


def register(stages: Mapping[str, Stage], only: str | None = None) -> Iterator[str]:
    """Bring the registry to the state of these stages. Yields a line for each version that `current` moved to, or did not.

    only: of this task. Its recipe is also that of the stages which all tasks share.

    Each model is registered when its lines are read. So those before one that fails are registered.
    Raises PruneOnceError: TrackerUnreachable if the store fails, also where a disk is full.
    """
    with store() as (client, _):
        for task, path, md5 in evaluated(stages):
            if only in (None, task):
                yield from _current(client, stages, task, Path(path), md5)


def evaluated(stages: Mapping[str, Stage]) -> Iterator[tuple[str, str, str]]:
    """(task, path, md5) of every int8 file that was evaluated as it stands."""
    for name, stage in stages.items():
        stage_name, _, task = name.partition("@")
        evaluate = stages.get(f"evaluate@{task}")
        if stage_name == "export" and evaluate:
            path, md5 = next((p, md5) for p, md5 in stage.outs.items() if Path(p).name == FILE)
            if evaluate.deps.get(path) == md5:
                yield task, path, md5


def _current(client: MlflowClient, stages: Mapping[str, Stage], task: str, path: Path, md5: str) -> Iterator[str]:
    """Put the alias on the version of this file; store and register the file first if it is new."""
    model = versions.model(task)
    known = {v.tags.get("md5"): v for v in client.search_model_versions(f"name='{model}'")}
    version = known.get(md5) or _new(client, stages, task, path, md5)
    if version is None:
        return
    versions.complete(client, version, stages, task)
    before = champions.champion(client, model, ALIAS)
    if before == str(version.version):
        return
    if why := obstacle(stages, task):
        yield (
            f"models:/{model}@{ALIAS} stays at {f'version {before}' if before else 'no version'}, not version "
            f"{version.version} of md5 {md5}: {why}."
        )
        return
    client.set_registered_model_alias(model, ALIAS, version.version)
    yield f"models:/{model}@{ALIAS} is version {version.version}, md5 {md5}"


def _new(client: MlflowClient, stages: Mapping[str, Stage], task: str, path: Path, md5: str) -> ModelVersion | None:
    """Store and register a file; None if it was computed under another tracking store, or the file here is another one."""
    runs = runs_of(stages[f"export@{task}"])
    if not runs or not path.exists() or file_md5(path) != md5:
        return None
    measured = results(runs_of(stages[f"evaluate@{task}"]))
    numbers = {key: f"{measured[f'int8.{key}']:.10g}" for key in MEASURED if f"int8.{key}" in measured}
    tags = {"md5": md5, "path": str(path), **numbers, **versions.tags(stages, task)}
    model, source = versions.model(task), _store(client, runs[0], path)
    _create(client, model, f"Answers texts for the task {task}: a sparse int8 model, packed.")  # now that there is a version
    return client.create_model_version(model, source, run_id=runs[0], tags=tags, description=_description(task, tags, md5))


def _description(task: str, numbers: Mapping[str, str], md5: str) -> str:
    """What the version's page says in Markdown."""
    score = f" Its score on the test split was {float(numbers['score']):.2%}." if "score" in numbers else ""
    return (
        f"The int8 model of the task {task}, of md5 `{md5}`.{score} Text goes in, answers come out: "
        f'`pruneonce predict models:/{versions.model(task)}/VERSION --text "..."`. What it was made from: '
        f"`pruneonce trace {md5[:8]}`. The report with plots is `report/report.html` of the flow run above its source run."
    )


def _create(client: MlflowClient, model: str, description: str) -> None:
    """Have such a registered model."""
    try:
        client.create_registered_model(model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _store(client: MlflowClient, run_id: str, path: Path) -> str:
    """Keep the file as an artifact of its run, as an MLflow model that answers text. Returns its URI."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        packaging.save(path, target)
        client.log_artifacts(run_id, str(target), path.stem)
        _show_schema(client, run_id, Model.load(target), path.stem)
    return f"runs:/{run_id}/{path.stem}"


def _show_schema(client: MlflowClient, run_id: str, model: Model, name: str) -> None:
    """Say in the run what the model reads and returns: MLflow's page of the version takes it from this tag."""
    said = {**model.to_dict(), "run_id": run_id, "artifact_path": name}
    kept = ("run_id", "artifact_path", "utc_time_created", "model_uuid", "flavors", "signature")
    client.set_tag(run_id, HISTORY, json.dumps([{key: said[key] for key in kept}], default=str))
