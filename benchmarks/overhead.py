"""Time that the flow adds to plain `dvc repro`, in a run with nothing to do and in a run that trains.

In a clone of the last commit on the tiny profile, with a Prefect home and an MLflow file of its own.

unchanged   wall time of `python -m flows.compress` when every stage is as in dvc.lock; of it, the imports (measured alone)
            and Prefect's start (an empty flow in the same environment, its import taken off)
training    another seed: everything but the sources is computed again, by `dvc repro` and by the flow in turn. What the flow
            adds does not depend on how long the stages train, so it is told in seconds, and as a share of the default
            profile's run.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML

from benchmarks.measuring import arguments, bar, publish

ROOT = Path(__file__).parents[1]
FLOW = [sys.executable, "-m", "flows.compress"]
DVC = [str(Path(sys.executable).with_name("dvc")), "repro", "--quiet"]
EMPTY = [sys.executable, "-c", "from prefect import flow\nflow(lambda: None, name='empty')()"]
RUN_MINUTES = 20  # of the default profile, everything computed, on two cores
HEAVY = ("torch", "transformers", "onnxruntime", "datasets", "accelerate", "mlflow")
LOADED = """import sys, flows.compress as f
sys.argv[1:] = []
{run}
print("LOADED", *{{name.split(".")[0] for name in sys.modules}})"""


class Copy:
    """A clone of the project's last commit, in a folder of its own and with nothing computed."""

    def __init__(self, folder: Path):
        self.folder = folder / "project"
        own = ("PREFECT_", "MLFLOW_", "DVC_", "PRUNEONCE_", "GIT_", "PYTHONPATH")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
        }
        subprocess.run(["git", "clone", "--quiet", ROOT, self.folder], check=True)
        (self.folder / "dvc.lock").unlink()

    def run(self, words: list[str]) -> tuple[float, str]:
        """Wall time in seconds, and the output. Raises RuntimeError with the end of its output if it fails."""
        began = time.perf_counter()
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return took, done.stdout

    def set_seed(self, seed: int) -> None:
        """Write common.seed into the copy's params.yaml."""
        yaml, path = YAML(), self.folder / "params.yaml"
        document = yaml.load(path)
        document["common"]["seed"] = seed
        yaml.dump(document, path)


def heavy(copy: Copy, run: str) -> str:
    """Which heavy packages the flow's process has imported after `run`."""
    loaded = copy.run([sys.executable, "-c", LOADED.format(run=run)])[1].rpartition("LOADED")[2].split()
    return ", ".join(name for name in HEAVY if name in loaded) or "none"


def unchanged(copy: Copy, rounds: int) -> list[dict[str, object]]:
    imports = median(copy.run([sys.executable, "-c", "import flows.compress"])[0] for _ in range(rounds))
    prefect = median(copy.run([sys.executable, "-c", "import prefect.flows"])[0] for _ in range(rounds))
    start = median(copy.run(EMPTY)[0] for _ in range(rounds)) - prefect
    whole = median(copy.run(FLOW)[0] for _ in range(rounds))
    dvc = median(copy.run(DVC)[0] for _ in range(rounds))
    return [
        {"nothing changed": "the flow, whole", "seconds": whole, "bar": ""},
        {"nothing changed": "of it imports", "seconds": imports, "bar": ""},
        {"nothing changed": "of it Prefect's start and end", "seconds": start, "bar": ""},
        {"nothing changed": "after imports", "seconds": whole - imports, "bar": bar("< 10 s", met=whole - imports < 10)},
        {"nothing changed": "dvc repro, whole", "seconds": dvc, "bar": ""},
        {"nothing changed": f"heavy imports: {heavy(copy, '')} when imported, {heavy(copy, 'f.main()')} after the run"},
    ]


def training(copy: Copy, rounds: int) -> list[dict[str, object]]:
    found: dict[str, list[float]] = {"dvc repro": [], "flow": []}
    for number in range(rounds):
        for offset, (side, words) in enumerate({"dvc repro": DVC, "flow": FLOW}.items()):
            copy.set_seed(100 + 2 * number + offset)  # all that is not fetched runs again
            found[side].append(copy.run(words)[0])
    return [
        {
            "a run that trains": f"round {number}",
            "dvc repro s": dvc,
            "flow s": flow,
            "added s": flow - dvc,
            f"of a run of {RUN_MINUTES} minutes": f"{100 * (flow - dvc) / (60 * RUN_MINUTES):.1f} %",
            "bar": bar("< 2 %", met=flow - dvc < 0.02 * 60 * RUN_MINUTES),
        }
        for number, (dvc, flow) in enumerate(zip(*found.values(), strict=True), 1)
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of a run with nothing changed; of training: one less")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        copy.run([*FLOW, "--profile", "tiny"])
        publish("A run with nothing changed", unchanged(copy, args.rounds), file=args.json)
        publish("The flow against dvc repro", training(copy, max(1, args.rounds - 1)), file=args.json)


if __name__ == "__main__":
    main()
