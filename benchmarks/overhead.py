"""What the flow costs on top of the work: a run with nothing to do, and a run that trains, against plain `dvc repro`.

In a temporary copy of the project on the tiny profile, with a Prefect home and an MLflow file of its own.

unchanged   wall time of `python -m flows.compress` when every stage is as in dvc.lock; of it, the imports (measured alone)
            and Prefect's start (an empty flow in the same environment, its import taken off)
training    the same changed number, run by `dvc repro` and by the flow in turn; sparsify.steps is raised so that it trains
            about a minute. `dvc repro` leaves sealing to a process that outlives it; the flow seals before it ends.
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

from benchmarks.measuring import arguments, publish

ROOT = Path(__file__).parents[1]
FLOW = [sys.executable, "-m", "flows.compress"]
DVC = [str(Path(sys.executable).with_name("dvc")), "repro", "--quiet"]
EMPTY = [sys.executable, "-c", "from prefect import flow\nflow(lambda: None, name='empty')()"]
HEAVY = ("torch", "transformers", "onnxruntime", "datasets", "accelerate", "mlflow")
LOADED = """import sys, flows.compress as f
sys.argv[1:] = []
{run}
print("LOADED", *{{name.split(".")[0] for name in sys.modules}})"""


class Copy:
    """The project's files as git has them now, in a folder and a git repository of their own."""

    def __init__(self, folder: Path):
        self.folder = folder / "project"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            if name != "dvc.lock" and not name.startswith("data/") and (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes((ROOT / name).read_bytes())
        own = ("PREFECT_", "MLFLOW_", "DVC_", "PRUNEONCE_", "GIT_", "PYTHONPATH")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(own)} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
        }
        identity = "-c user.name=benchmark -c user.email=benchmark@example.org"
        for words in ("init -q", "add -A", f"{identity} commit -qm copy"):
            self.run(["git", *shlex.split(words)])

    def run(self, words: list[str]) -> tuple[float, str]:
        """Wall time in seconds, and what it printed. Raises RuntimeError with the end of its output if it fails."""
        began = time.perf_counter()
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return took, done.stdout

    def set_steps(self, steps: int) -> None:
        """Write sparsify.steps into the copy's params.yaml."""
        yaml, path = YAML(), self.folder / "params.yaml"
        document = yaml.load(path)
        document["sparsify"]["steps"] = steps
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
        {"nothing changed": "after imports", "seconds": whole - imports, "bar": "< 10 s"},
        {"nothing changed": "dvc repro, whole", "seconds": dvc, "bar": ""},
        {"nothing changed": f"heavy imports: {heavy(copy, '')} when imported, {heavy(copy, 'f.main()')} after the run"},
    ]


def training(copy: Copy, steps: int, rounds: int) -> list[dict[str, object]]:
    found: dict[str, list[float]] = {"dvc repro": [], "flow": []}
    for number in range(rounds):
        for offset, (side, words) in enumerate({"dvc repro": DVC, "flow": FLOW}.items()):
            copy.set_steps(steps + 2 * number + offset)  # a step more or less: nothing to time, all to run
            found[side].append(copy.run(words)[0])
            time.sleep(15 if side == "dvc repro" else 0)  # the process that seals after dvc repro must not slow the flow
    shares = [(f - d) / d for d, f in zip(*found.values(), strict=True)]
    return [
        {
            "a run that trains": f"round {i + 1}",
            "dvc repro s": d,
            "flow s": f,
            "flow - dvc s": f"{f - d:.2f}",
            "a stage s": f"{(f - d) / 6:.2f}",  # sparsify, finetune, quantize, export, evaluate, report
            "%": f"{100 * share:.1f}",
            "bar": "< 2 %",
        }
        for i, (d, f, share) in enumerate(zip(*found.values(), shares, strict=True))
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of a run with nothing changed; of training: one less")
    parser.add_argument("--steps", type=int, default=3000, help="sparsify.steps of a run that trains; 0: not measured")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        copy.run([*FLOW, "--profile", "tiny"])
        publish("A run with nothing changed", unchanged(copy, args.rounds), file=args.json)
        if args.steps:
            publish("The flow against dvc repro", training(copy, args.steps, max(1, args.rounds - 1)), file=args.json)


if __name__ == "__main__":
    main()
