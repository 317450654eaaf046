"""The figures of `make faults`: kept in docs/reliability.json, shown as a table: `python -m tests.faults.figures`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "docs/reliability.json"
TITLES = {
    "kills": "SIGKILL of a training",
    "disk": "full disk",
    "tracking": "MLflow's server gone",
    "remote": "DVC's remote gone",
    "cache": "damaged files",
    "together": "two runs at once",
    "signals": "signals and lost processes",
    "clock": "a clock that jumps",
}


def merged(old: Mapping[str, Any], suite: str, cases: list[dict[str, Any]], *, date: str, machine: str) -> dict[str, Any]:
    """The figures with those of one suite replaced."""
    return {**old, suite: {"date": date, "machine": machine, "cases": cases}}


def table(figures: Mapping[str, Any]) -> list[str]:
    """Markdown: a row a suite, then a row a stage that was killed."""
    rows = ["| fault | cases | nothing lost | date |", "|---|---|---|---|"]
    for suite, title in TITLES.items():
        if found := figures.get(suite):
            good = sum(not case["lost"] for case in found["cases"])
            rows.append(f"| {title} | {len(found['cases'])} | {good} | {found['date']} |")
    if killed := figures.get("kills"):
        rows += [
            "",
            "| killed stage | kills | while a checkpoint was written | most steps lost | most seconds lost | same bytes |",
        ]
        rows.append("|---|---|---|---|---|---|")
        for case in killed["cases"]:
            f, same = case["figures"], "no" if case["lost"] else "yes"
            numbers = (f["kills"], f["while_writing"], f["most_steps_lost"], f["most_seconds_lost"])
            rows.append(f"| {case['name']} | {' | '.join(f'{n:g}' for n in numbers)} | {same} |")
    machines = sorted({found["machine"] for found in figures.values()})
    return [*rows, "", f"Measured on: {'; '.join(machines)}."]


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


if __name__ == "__main__":
    print("\n".join(table(read())))
