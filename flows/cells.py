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
from flows.failures import Failures, in_words
from flows.grid import Cell
from flows.handing import Handed
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
    runs: dict[str, str] = field(default_factory=dict)  # cell -> its MLflow run, while that is open
    keys: dict[str, str] = field(default_factory=dict)
    shared: Counter[tuple[str, str]] = field(default_factory=Counter)  # (stage, its signature) -> cells
    broken: dict[tuple[str, str], str] = field(default_factory=dict)  # of them, those that failed, and why

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
        failures = Failures(self.note)
        with handing.cancelled_at_the_end(self.close) as handed:
            for planned in self.unfinished(wanted):
                try:
                    handed += self.hand_out(planned)
                except Exception as error:  # also of what it shares with others: they are tried all the same
                    failures.note(planned.cell.name, in_words(error), how="was not handed out")
            with suppress(StageFailed):
                handing.collect(handed, self.take, lambda outcome: None, failures)
        return self.result(wanted)

    def hand_out(self, planned: Planned) -> list[Handed]:
        """Compute what the cell shares with others, and give the rest to a worker; nothing if all of it is there."""
        self.start(planned)
        name, tries, ready = planned.cell.name, load().machine.stage_retries, set[str]()
        own = [s for s in planned.stages if self.shared[s, planned.signatures[s]] == 1 and not s.startswith("fetch")]
        with branch.below(self.run):
            for stage in planned.stages:
                if stage not in own:
                    self.common(stage, planned.signatures[stage], tries=tries)
        ready.update(outcome.stage for outcome in workers.without_computing(name, own, self.runs[name], self.team))
        if len(ready) == len(own):
            self.finish(name, json.loads(Path(REPORT).read_text(encoding="utf-8")))
            return []
        return [workers.give(workers.make(name, own, self.runs[name], self.team), self.run, ready, tries=tries)]

    def common(self, stage: str, signature: str, *, tries: int) -> None:
        """Bring a stage that several cells share up to date. One that failed is not computed again for the next cell."""
        if why := self.broken.get((stage, signature)):
            raise StageFailed(why)
        try:
            restoring.restored(stage) or repro.with_options(retries=tries)(stage)
        except StageFailed as error:
            self.broken[stage, signature] = str(error)
            raise

    def unfinished(self, wanted: list[Cell]) -> list[Planned]:
        """The cells to compute. The rows of the others are taken from MLflow."""
        left = []
        for cell in wanted:
            planned = self.plan(cell)
            self.shared.update(planned.signatures.items())  # also of a finished cell: what it shares was computed here
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
        came = [r for s in unit.stages if (r := results.get(s)) and r.get("key") == unit.key and s not in ready]
        for result in came:
            recorded = units.recorded(result["stage"], result)
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
        if run := self.runs.pop(name, None):
            flow_runs.end_flow(run, status, left)

    def close(self) -> None:
        """Close the MLflow runs of cells that are not finished: the sweep is stopped."""
        for name in list(self.runs):
            self.end(name, "KILLED")

    def result(self, wanted: list[Cell]) -> Result:
        rows = [row for cell in wanted for row in page.rows(cell.values, self.rows.get(cell.name, []))]
        return rows, self.failed
