"""Which stages of a sweep are computed once, by the coordinator, and what a cell that fails costs the others. By hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger

from flows import cells, grid, handing, restoring, sweep, workers
from flows.cells import Planned, Sweep
from flows.grid import Cell
from flows.trouble import StageFailed
from flows.units import Team

STAGES = ["sparsify", "finetune"]


class Fakes:
    """Two cells that share `sparsify`."""

    def __init__(self, monkeypatch, tmp_path: Path):
        monkeypatch.chdir(tmp_path)
        self.computed, self.given, self.ended, self.finished = [], {}, {}, set()
        self.broken, self.refused, self.restored = set(), None, []
        self.sweep = Sweep(tmp_path, "run", Team("c", "r", None, False), None, [], base="")
        self.wanted = [Cell(name, {"sparsify.rate": name}) for name in ("one", "two")]
        for owner, name, fake in (
            (Sweep, "plan", lambda _, cell: Planned(cell, "", STAGES, {"sparsify": "s", "finetune": cell.name}, cell.name)),
            (cells.handover, "kept_rows", lambda key: [{"score": 1}] if key in self.finished else None),
            (cells.handover, "keep_rows", lambda *words: None),
            (cells.flow_runs, "start_flow", lambda name, values, parent: f"run of {name}"),
            (cells.flow_runs, "end_flow", lambda run, status, left: self.ended.__setitem__(run, status)),
            (cells.flow_runs, "scores", lambda rows: {}),
            (cells.page, "rows", lambda values, rows: rows),
            (cells, "load", lambda: SimpleNamespace(machine=SimpleNamespace(stage_retries=0))),
            (cells, "repro", SimpleNamespace(with_options=lambda retries: self.compute)),
            (restoring, "restored", lambda stage: None),
            (workers, "without_computing", lambda *words: [SimpleNamespace(stage=s) for s in self.restored]),
            (workers, "make", lambda name, stages, run, team: SimpleNamespace(name=name, stages=stages)),
            (workers, "give", self.give),
            (handing, "collect", self.collect),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, fake)

    def compute(self, stage: str) -> None:
        self.computed.append(stage)
        if stage in self.broken:
            raise StageFailed(f"{stage} failed")

    def give(self, unit, run, ready, *, tries):
        if unit.name == self.refused:
            raise RuntimeError("the remote is away")
        self.given[unit.name] = unit.stages
        return SimpleNamespace(unit=unit, own=False)

    def collect(self, handed, take, done, failures):
        for one in handed:
            self.sweep.finish(one.unit.name, [{"score": 2}])
        failures.check()

    def run(self):
        with disable_run_logger():
            return self.sweep.by_workers(self.wanted)


@pytest.fixture
def fakes(monkeypatch, tmp_path) -> Fakes:
    return Fakes(monkeypatch, tmp_path)


def test_what_cells_share_is_computed_here_and_the_rest_by_workers(fakes):
    assert fakes.run() == ([{"score": 2}] * 2, {})
    assert fakes.given == {"one": ["finetune"], "two": ["finetune"]}
    assert fakes.ended == {"run of one": "FINISHED", "run of two": "FINISHED"}


def test_what_the_last_cell_shares_with_finished_ones_is_not_given_to_a_worker(fakes):
    fakes.finished = {"one"}
    assert fakes.run() == ([{"score": 1}, {"score": 2}], {})
    assert fakes.given == {"two": ["finetune"]}


def test_a_cell_that_is_there_already_is_finished_without_a_worker(fakes):
    fakes.finished, fakes.restored = {"one"}, ["finetune"]
    Path(cells.REPORT).parent.mkdir(parents=True)
    Path(cells.REPORT).write_text(json.dumps([{"score": 3}]))
    assert fakes.run() == ([{"score": 1}, {"score": 3}], {})
    assert fakes.given == {}


def test_a_cell_that_cannot_be_handed_out_does_not_end_the_others(fakes):
    fakes.refused = "one"
    rows, failed = fakes.run()
    assert rows == [{"score": 2}]
    assert failed == {"one": "RuntimeError: the remote is away"}
    assert fakes.ended == {"run of one": "FAILED", "run of two": "FINISHED"}


def test_a_shared_stage_that_fails_is_computed_once_and_every_cell_of_it_is_named(fakes):
    fakes.broken = {"sparsify"}
    rows, failed = fakes.run()
    assert rows == []
    assert failed == dict.fromkeys(["one", "two"], "StageFailed: sparsify failed")
    assert fakes.computed == ["sparsify"]
    assert set(fakes.ended.values()) == {"FAILED"}


def test_a_sweep_without_a_row_leaves_no_plot_of_an_earlier_one(tmp_path, monkeypatch):
    """Its folder is named after the keys of the grid: it is that of the sweep before."""
    monkeypatch.setattr(sweep, "create_markdown_artifact", lambda text, key: None)
    for name in ("table.csv", "plot.svg"):
        (tmp_path / name).write_text("old")
    with disable_run_logger():
        kept = sweep.written(tmp_path, [], {"one": "it failed"}, ["sparsify.sparsity"])
    assert list(kept.files) == [tmp_path / "table.md"] == sorted(tmp_path.iterdir())
    assert "one failed: it failed" in (tmp_path / "table.md").read_text()


def test_a_sweep_that_is_stopped_closes_the_runs_of_its_cells(fakes, monkeypatch):
    def stop(stage: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fakes, "compute", stop)
    with pytest.raises(KeyboardInterrupt):
        fakes.run()
    assert fakes.ended == {"run of one": "KILLED"}


def test_sweeps_that_are_not_the_same_have_folders_of_their_own():
    rates = ["sparsify.learning_rate=1e-4,2e-4", "finetune.learning_rate=1e-4,2e-4", "sparsify.learning_rate=1e-4,3e-4"]
    names = {sweep.default_name(grid.cells([axis]), None, []) for axis in rates}
    names |= {sweep.default_name(grid.cells(rates[:1]), *more) for more in (("tiny", []), (None, ["common.seed=2"]))}
    assert len(names) == 5
    assert sweep.default_name(grid.cells(rates[:1]), None, []) in names, "the same command finds its folder again"
    assert sum(name.startswith("sparsify.learning_rate-") for name in names) == 4
