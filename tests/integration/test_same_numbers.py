"""`dvc plots show`, MLflow's pages and the report's page show the same numbers."""

import json
import re
import shutil

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.tracking import store
from tests.integration.conftest import new_project
from tests.integration.tiny import TASK

STAGE, PLOT = f"quantize@{TASK}", f"data/plots/quantize/{TASK}.csv"
DIGITS = 6  # of a number in a plot's file


def newest(client: MlflowClient, name: str) -> Run:
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    query = f"attributes.run_name = '{name}'"
    return client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time DESC"])[0]


@pytest.fixture(scope="module")
def shown(first, tracking_uri, tmp_path_factory):
    """What each of the three shows, of a training and of the scores, in a project in which both were just computed."""
    computed = new_project(tmp_path_factory.mktemp("same") / "project", tracking_uri)
    shutil.copytree(first.folder / "data", computed.folder / "data")
    for name in (STAGE, "report"):
        done = computed.main(name)
        assert done.returncode == 0, done.stderr
    with Repo(str(computed.folder)) as repo:
        read = repo.plots.show(targets=[PLOT, "data/report/sizes.csv"])["workspace"]["sources"]["data"]
    client = MlflowClient(computed.environment["MLFLOW_TRACKING_URI"])
    html = (computed.folder / "data/report/report.html").read_text(encoding="utf-8")
    page = json.loads(re.search(r'<script type="application/json" id="report-data">(.*?)</script>', html)[1])
    return read, client, page


def test_a_curve_is_the_same_in_all_three(shown):
    dvc, client, page = shown
    run = newest(client, STAGE)
    rows = dvc[PLOT]["data"]
    (curve,) = [one for one in page["curves"] if (one["stage"], one["task"]) == ("quantize", TASK)]
    assert [int(row["step"]) for row in rows] == curve["steps"]
    assert len(rows) >= 2
    assert {"loss", "soft", "learning_rate"} <= set(curve["columns"]) == set(rows[0]) - {"step"}
    for name, values in curve["columns"].items():
        assert values == [float(row[name]) for row in rows], name
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        assert values == [float(f"{history[step]:.{DIGITS}g}") for step in curve["steps"]], name
        drawn = [p for chart in page["charts"].values() for p in chart["rows"] if p.get("part") == name]
        assert {(p["step"], p["value"]) for p in drawn} >= set(
            zip(curve["steps"], values, strict=True)
        ) or name == "gradient_norm"


def test_a_score_is_the_same_in_all_three(shown):
    dvc, client, page = shown
    run = newest(client, "report")
    points = {row["variant"]: row for row in dvc["data/report/sizes.csv"]["data"]}
    assert len(page["rows"]) == 4
    for row in page["rows"]:
        assert run.data.metrics[f"result.{TASK}.{row['variant']}"] == row["score"]
        assert float(points[row["variant"]]["score"]) == round(row["score"], 5)
        drawn = [
            p for chart in page["charts"].values() for p in chart["rows"] if "cost" in p and p["variant"] == row["variant"]
        ]
        assert {p["score"] for p in drawn} == {row["score"]}
        size = float(points[row["variant"]]["packed_megabytes"])
        assert size in {round(p["cost"], 3) for p in drawn}
