"""What `make faults` shows: its table, its exit code for a loss, the figures that are kept of suites that were not run."""

from pathlib import Path

import pytest

from tests.faults import figures
from tests.faults.case import Case
from tests.faults.ground import contents

KILLED = {"kills": 30, "while_writing": 9, "most_steps_lost": 2, "most_seconds_lost": 0.25}


def kept(*lost: str) -> dict:
    case = {"name": "sparsify", "lost": list(lost), "figures": KILLED}
    return figures.merged({}, "kills", [case], date="2026-01-02", machine="a processor, 2 cores")


def test_the_table_counts_what_was_lost_and_names_date_and_machine():
    lines = figures.table(kept())
    assert "| SIGKILL of a training | 1 | 1 | 2026-01-02 |" in lines
    assert "| sparsify | 30 | 9 | 2 | 0.25 | yes |" in lines
    assert lines[-1] == "Measured on: a processor, 2 cores."
    lost = figures.table(kept("other bytes"))
    assert "| SIGKILL of a training | 1 | 0 | 2026-01-02 |" in lost
    assert "| sparsify | 30 | 9 | 2 | 0.25 | no |" in lost


def test_a_suite_that_runs_again_replaces_its_own_figures_alone():
    both = figures.merged(kept(), "disk", [{"name": "out", "lost": [], "figures": {}}], date="2026-02-03", machine="m")
    assert set(both) == {"kills", "disk"}
    assert both["kills"] == kept()["kills"]
    again = figures.merged(both, "disk", [], date="2026-03-04", machine="m")
    assert again["disk"]["cases"] == []


@pytest.mark.parametrize(
    ("lost", "begins"), [((), "ok   disk: full (bytes 3)"), (("an out",), "LOST disk: full (bytes 3)\n")]
)
def test_a_line_says_whether_something_was_lost(lost, begins):
    line = Case("disk", "full", lost, {"bytes": 3}).line()
    assert line.startswith(begins)
    assert all(what in line for what in lost)


def test_a_suite_for_each_row_of_the_table():
    folder = Path(figures.__file__).parent
    suites = [path.stem for path in folder.glob("*.py") if "\ndef suite(" in path.read_text()]
    assert sorted(suites) == sorted(figures.TITLES)
    assert len(suites) == 8


def test_contents_are_those_of_all_files(tmp_path):
    (tmp_path / "model/deep").mkdir(parents=True)
    (tmp_path / "model/deep/a").write_bytes(b"1")
    assert contents(tmp_path / "model") == {"model/deep/a": b"1"}
    assert contents(tmp_path / "model/deep/a") == {"a": b"1"}
    assert contents(tmp_path / "none") == {}
