"""One run on several workers: its wall time against that on one worker, with the tiny model and as many tasks as asked for.

`--tasks` and `--workers` say how many. Both servers are on PostgreSQL, models go through S3, and no two workers share a
folder; all of it is on this machine. So its cores are shared, and the ratio says how much of a run is spread, and what the
handing over costs. On a machine with fewer cores than workers it is not the ratio of as many machines.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.cluster import Cluster, cluster


def seconds(tasks: int, workers: int) -> float:
    """Wall time of a whole run. The servers and the workers are up before it begins."""
    with tempfile.TemporaryDirectory() as name, cluster(Path(name)) as team:
        team.add_profile(tasks, steps=40, checkpoint_seconds=60)
        coordinator = team.clone("coordinator")
        team.run(["prefect", "deploy", "--name", "branch"], cwd=coordinator)
        for number in range(workers):
            team.worker(team.clone(f"machine{number}"), **own_folders(team, number))
        began = time.monotonic()
        team.run([sys.executable, "-m", "flows.compress", "--profile", "cluster", "--workers"], cwd=coordinator)
        return time.monotonic() - began


def own_folders(team: Cluster, number: int) -> dict[str, str]:
    """DVC's cache, checkpoints and kernels of a worker, which no other one sees."""
    home = team.folder / f"home{number}"
    return {"XDG_CACHE_HOME": str(home), "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    one, several = seconds(args.tasks, 1), seconds(args.tasks, args.workers)
    print(f"{args.tasks} tasks, {os.cpu_count()} cores for all: {one:.0f} s on 1 worker, {several:.0f} s on {args.workers}")
    print(f"ratio: {one / several:.2f}")


if __name__ == "__main__":
    main()
