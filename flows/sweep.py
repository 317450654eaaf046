"""A grid over parameters: every cell is the whole pipeline with its values, and a row in one table.

`python -m flows.sweep --grid sparsify.sparsity=0.85,0.9 --grid common.seed=1,2 [--workers] [--profile tiny]`. The cells are
computed in a clone of this folder's commit, or by workers; params.yaml and dvc.lock of this folder stay as they are. What
cells share is computed once. A cell that is finished, here or in an earlier sweep, is not computed again. The table and the
plot are written to `.pruneonce/sweeps/<name>/`, and kept in the sweep's MLflow run, above the runs of the cells.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from flows import stopping

    stopping.listen()

import argparse
import hashlib
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from rich.console import Console
from rich.markdown import Markdown

from flows import checkout, commits, trouble, workers
from flows.cells import Sweep
from flows.grid import LONGEST, Cell
from flows.grid import cells as combined
from flows.repro import quiet_logs, say_errors_once
from flows.trouble import StageFailed
from flows.units import KERNELS, Team
from pipeline import processes
from pipeline import sweep_page as page
from pipeline.params import profiles
from pipeline.tracking import flow_runs
from pruneonce.errors import ConfigError
from pruneonce.terminal import flushed_output

FOLDER = Path(".pruneonce/sweeps")
Rows = list[dict[str, Any]]


@flow(name="sweep", validate_parameters=True, persist_result=False, log_prints=False)
def sweep(
    grid: list[str],
    profile: str | None = None,
    overrides: list[str] | None = None,
    workers: bool = False,
    name: str | None = None,
) -> Rows:
    """Compute every cell of a grid that is not finished yet. Returns the rows of the table.

    grid: ["section.key=value,value", ...]. workers: give each cell to a worker of the pool. name: of the table's folder.
    """
    return run(grid, profile, overrides or [], helped=workers, name=name)


def run(axes: Sequence[str], profile: str | None, overrides: list[str], *, helped: bool, name: str | None) -> Rows:
    """The sweep, inside a flow. Raises StageFailed at its end if a cell failed; the others are in the table."""
    quiet_logs()
    wanted = check(axes, profile, overrides, name)
    read = profiles.files(profile) if profile else []  # every cell is made in a clone, from the profile's name
    team = workers.team(*read) if helped else Team(commits.head(*read), str(Path.cwd()), None, KERNELS.exists())
    folder = FOLDER / (name or default_name(wanted, profile, overrides))
    with processes.alone(folder / "lock", f"sweep {folder.name} in this folder"):
        checkout.make(folder / "checkout", team)
        said = {"grid": " ".join(axes), "profile": profile or "params.yaml", "overrides": " ".join(overrides)}
        run_id = flow_runs.start_flow("sweep", said, flow_run=str(flow_run.id or ""))
        status, left = "KILLED", flow_runs.Finished()
        todo = Sweep(folder / "checkout", run_id, team, profile, overrides)
        try:
            with checkout.inside(todo.folder):
                found, failed = todo.by_workers(wanted) if helped else todo.here(wanted)
            left = written(folder, found, failed, list(wanted[0].values))
            status = "FAILED" if failed else "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            flow_runs.end_flow(run_id, status, left)
    if failed:
        told = " ".join(f"{cell}: {why}" for cell, why in failed.items())
        raise StageFailed(f"{len(failed)} of {len(wanted)} cells failed. {told} The others are in {folder}/table.md.")
    return found


def default_name(wanted: Sequence[Cell], profile: str | None, overrides: Sequence[str]) -> str:
    """The keys of the grid, and a digest of all that tells this sweep from another one over the same keys."""
    digest = hashlib.sha256(json.dumps([[cell.values for cell in wanted], profile, list(overrides)]).encode()).hexdigest()
    return f"{'-'.join(wanted[0].values)[:LONGEST]}-{digest[:8]}"


def check(axes: Sequence[str], profile: str | None, overrides: list[str], name: str | None) -> list[Cell]:
    """The cells. Raises ConfigError if one has parameters that cannot be, or the name is none of a folder: before the first
    one starts."""
    if name and not re.fullmatch(r"\w[\w.=-]{0,99}", name):
        raise ConfigError(
            f"expected a name of letters, digits, `_`, `-`, `=` and dots for the folder of the table, found {name[:100]!r}. "
            "The first character must be a letter, a digit or `_`."
        )
    wanted = combined(axes)
    for cell in wanted:
        profiles.check(profile, [*overrides, *cell.overrides])
    return wanted


def written(folder: Path, found: Rows, failed: dict[str, str], keys: list[str]) -> flow_runs.Finished:
    """Write the table and the plot. Returns them as MLflow keeps them."""
    notes = [f"{cell} failed: {why}" for cell, why in failed.items()]
    text = page.markdown(f"Sweep {folder.name}", found, keys, notes)
    files = [folder / "table.md", folder / "table.csv", folder / "plot.svg"]
    files[0].write_text(text, encoding="utf-8")
    for file in files[1:]:
        file.unlink(missing_ok=True)  # of an earlier sweep of this name
    if found:
        page.write_csv(files[1], found, keys)
        page.draw(files[2], found, keys)
    create_markdown_artifact(text, key="sweep")
    get_run_logger().info("the table is in %s", files[0])
    return flow_runs.Finished(note=text, files=[file for file in files if file.exists()])


def main() -> None:
    """The command line of the sweep. Every error a user can meet ends in one line and a non-zero exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="append", required=True, metavar="section.key=value,value", help="values to try")
    parser.add_argument("--profile", help="a file of profiles/ without its suffix; default: params.yaml as it stands")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="change it in every cell")
    parser.add_argument("--workers", action="store_true", help="each cell on a worker of the pool; see docs/machines.md")
    parser.add_argument("--name", help="of the folder of the table; default: made from the grid")
    with flushed_output():
        args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with trouble.one_line():
        check(args.grid, args.profile, args.set, args.name)  # before Prefect starts a server, which takes seconds
        say_errors_once()
        processes.guard()
        trouble.check_prefect()
        found = sweep(args.grid, args.profile, args.set, args.workers, args.name)
    with flushed_output():
        keys = list(combined(args.grid)[0].values)
        Console(width=None if sys.stdout.isatty() else 120).print(Markdown(page.markdown("Sweep", found, keys, [])))


if __name__ == "__main__":
    main()
