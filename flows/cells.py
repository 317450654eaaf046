"""The cells of a sweep, computed in a clone of this folder, or by workers."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from prefect import get_run_logger

from flows import branch, checkout, handing, restoring, trouble, units, workers
from flows.grid import Cell
from flows.order import COMPRESS, in_order, signatures
from flows.repro import repro
from flows.trouble import StageFailed
from flows.units import PARAMS, RanOn, Team, Unit
from pipeline import sweep_page as page
from pipeline.params import profiles
from pipeline.params.document import load
from pipeline.tracking import flow_runs, handover
from pruneonce.errors import AlreadyRunning, PruneOnceError, TrackerUnreachable

REPORT = "data/report/report.json"
Rows = list[dict[str, Any]]
Result = tuple[Rows, dict[str, str]]  # the rows of the table; cell -> why it failed


@dataclass(frozen=True)
class Planned:
    """A cell with its params.yaml. key: a digest of all that determines its results. signatures: of `order`, by stage."""

    cell: Cell
    params: str
    stages: list[str]
    signatures: Mapping[str, str]
    key: str


@dataclass
class Sweep:
    """folder: the clone, in which all methods are called. run: the MLflow run of the sweep."""

    folder: Path
    run: str
    team: Team
    profile: str | None
    overrides: list[str]
    base: str = field(default_factory=profiles.current)
    rows: dict[str, Rows] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)  # cell -> its MLflow run
    keys: dict[str, str] = field(default_factory=dict)

    def here(self, wanted: list[Cell]) -> Result:
        """Compute the cells one after another. Their common stages are restored by DVC's cache."""
        for planned in self.unfinished(wanted):
            name = planned.cell.name
            self.start(planned)
            try:
                unit = workers.make(name, planned.stages, self.runs[name], self.team)
                branch.work_off(self.run, unit)
            except (AlreadyRunning, TrackerUnreachable):
                self.end(name, "FAILED")
                raise
            except PruneOnceError as error:
                self.failed[name] = str(error)
                self.end(name, "FAILED")
            except BaseException:
                self.end(name, "KILLED")
                raise
            else:
                self.finish(name, json.loads(Path(REPORT).read_text(encoding="utf-8")))
        return self.result(wanted)

    def by_workers(self, wanted: list[Cell]) -> Result:
        """Compute what several cells share, then give each cell to a worker."""
        left = self.unfinished(wanted)
        shared = Counter(pair for planned in left for pair in planned.signatures.items())
        with handing.cancelled_at_the_end() as handed:
            for planned in left:
                self.start(planned)
                name, tries = planned.cell.name, load().machine.stage_retries
                own = [s for s in planned.stages if shared[s, planned.signatures[s]] == 1 and not s.startswith("fetch")]
                with branch.below(self.run):
                    for stage in planned.stages:
                        if stage not in own:
                            restoring.restored(stage) or repro.with_options(retries=tries)(stage)
                unit = workers.make(name, own, self.runs[name], self.team)
                workers.push(own, set())
                handed.append(handing.hand_out(unit, self.run, ready=set(), tries=tries))
            with suppress(StageFailed):
                handing.collect(handed, self.run, self.take, lambda outcome: None, self.note)
        return self.result(wanted)

    def unfinished(self, wanted: list[Cell]) -> list[Planned]:
        """The cells to compute. The rows of the others are taken from MLflow."""
        left = []
        for cell in wanted:
            planned = self.plan(cell)
            self.keys[cell.name] = planned.key
            if rows := handover.kept_rows(planned.key):
                self.rows[cell.name] = rows
                get_run_logger().info("%s: finished by an earlier sweep", cell.name)
            else:
                left.append(planned)
        return left

    def plan(self, cell: Cell) -> Planned:
        PARAMS.write_text(self.base, encoding="utf-8")
        chosen = profiles.select(self.profile, [*self.overrides, *cell.overrides])
        checkout.link_sources(chosen)
        stages = in_order(COMPRESS)
        known = signatures()
        with trouble.plainly(f"DVC to say what {cell.name} is made of"), Repo() as repo:
            key = units.key(repo, stages)
        return Planned(cell, profiles.current(), stages, {stage: known[stage] for stage in stages}, key)

    def start(self, planned: Planned) -> None:
        """Make the clone that of the cell, and open its MLflow run below the sweep's."""
        PARAMS.write_text(planned.params, encoding="utf-8")
        name = planned.cell.name
        self.runs[name] = flow_runs.start_flow(name, planned.cell.values, parent=self.run)

    def take(self, unit: Unit, results: Mapping[str, Mapping[str, Any]], ready: Collection[str]) -> list[RanOn]:
        """Take the rows of a cell from what its worker handed back; nothing else of it is needed here."""
        came = [r for stage in unit.stages if (r := results.get(stage)) and r["key"] == unit.key and stage not in ready]
        for result in came:
            recorded = {out["path"]: out["md5"] for out in result["entry"]["outs"]}
            if text := result["files"].get(REPORT):
                units.check_text(REPORT, text, recorded[REPORT], result["where"])
                self.finish(unit.name, json.loads(text))
        return [RanOn(r["stage"], r["result"], r["why"], r["seconds"], r["where"]) for r in came]

    def note(self, name: str, why: str) -> None:
        """A cell failed on its worker."""
        self.failed[name] = why
        self.end(name, "FAILED")

    def finish(self, name: str, report: list[dict[str, Any]]) -> None:
        self.rows[name] = report
        handover.keep_rows(self.run, name, self.keys[name], report)
        self.end(name, "FINISHED", flow_runs.Finished(scores=flow_runs.scores(report)))

    def end(self, name: str, status: str, left: flow_runs.Finished | None = None) -> None:
        if run := self.runs.get(name):
            flow_runs.end_flow(run, status, left)

    def result(self, wanted: list[Cell]) -> Result:
        rows = [row for cell in wanted for row in page.rows(cell.values, self.rows.get(cell.name, []))]
        return rows, self.failed
