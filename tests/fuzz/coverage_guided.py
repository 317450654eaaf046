"""`python -m tests.fuzz.coverage_guided`: bytes of packed files, chosen by what code they reach. Needs atheris.

The corpus begins with ten valid packed files (packed_files.py). An input is unpacked to the disk and in memory, loaded to
answer, and answers. Half of the new inputs are damaged packed files. The other half are whole packed files of damaged ONNX
files: a checksum would hide from a fuzzer what comes behind it.

This process starts another one that does the work, and begins it again where an input ended it. What is bad is written to
.pruneonce/fuzz/, once a kind; `--replay FILE` shows what happens. Exit code 1 if anything was.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

FOUND = Path(".pruneonce/fuzz")
CORPUS = FOUND / "packed"
INPUT_SECONDS, MEMORY_MB = 10, 4096  # of an input; of the process
BEGIN_SECONDS = 60  # that a process may take to read the corpus
GET = ".venv/bin/pip install 'atheris>=3,<4'"
ROOT = Path(__file__).parents[2]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage_guided", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read one input, and show what happens")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(f"The bytes of packed files are not fuzzed: atheris is not installed. Get it: {GET}")
        return
    if args.replay:
        from tests.fuzz import packed_target

        with tempfile.TemporaryDirectory() as folder:
            return packed_target.read(args.replay.read_bytes(), Path(folder))
    sys.exit(_report(*_run(args.minutes, args.seed)))


def _run(minutes: float, seed: int) -> tuple[Counter[str], dict[str, Path], float]:
    """Let processes work until the time is over. Returns figures, what was bad by its kind, and the seconds."""
    from tests.fuzz import packed_files

    whole, found = packed_files.write(CORPUS), (FOUND / "guided").resolve()
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True)
    figures, bad = Counter[str](), dict[str, Path]()
    print(f"seed {seed}, {len(whole)} packed files, {minutes:g} minutes; a bad input is written to {found}/", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        began = time.monotonic()
        corpus = Path(shutil.copytree(CORPUS, Path(folder, "corpus")))
        while (left := 60 * minutes - (time.monotonic() - began)) > 1:
            said = _work(corpus, found, Path(folder), seconds=left, seed=seed + figures["processes"])
            figures["processes"] += 1
            figures["executions"] += _number(r"stat::number_of_executed_units:\s*(\d+)", said)
            figures["begins"] = figures["begins"] or _number(r"INITED\s+cov: (\d+)", said)
            figures["reached"] = max(figures["reached"], *map(int, re.findall(r"cov: (\d+)", said)), 0)
            figures["features"] = max(figures["features"], *map(int, re.findall(r" ft: (\d+)", said)), 0)
            if not figures["begins"]:
                raise RuntimeError(f"expected a fuzzer that begins, found: {said[-2000:]}")
            print(f"  {figures['executions']} executions, {figures['reached']} places reached", flush=True)
        figures["corpus"] = sum(1 for _ in corpus.iterdir())
        seconds = time.monotonic() - began
    for path in sorted(found.iterdir()):
        note = path.with_suffix(".json")
        if path.suffix != ".json":
            what = json.loads(note.read_text())["what"] if note.exists() else f"{path.name.partition('-')[0]} of the process"
            bad.setdefault(what, path)
    return figures, bad, seconds


def _work(corpus: Path, found: Path, folder: Path, *, seconds: float, seed: int) -> str:
    """What a process of the fuzzer says, once it ends: when its time is over, or by an input."""
    words = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.packed_target", str(folder), str(found)]
    options = {
        "max_total_time": int(seconds) + 1,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEMORY_MB,
        "seed": seed,
        "print_final_stats": 1,
        "len_control": 0,  # all lengths from the beginning
        "artifact_prefix": f"{found}/",
    }
    command = [*words, str(corpus), *(f"-{key}={value}" for key, value in options.items())]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds + BEGIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    said = log.read_text(errors="replace")
    if process.returncode:
        shutil.copy(log, found / f"log-{hashlib.md5(said.encode()).hexdigest()[:8]}.json.txt")
    return said


def _number(pattern: str, said: str) -> int:
    match = re.search(pattern, said)
    return int(match[1]) if match else 0


def _report(figures: Counter[str], bad: dict[str, Path], seconds: float) -> int:
    for what, path in bad.items():
        print(f"    {what}\n      python -m tests.fuzz.coverage_guided --replay {path}")
    print(
        f"{figures['executions']} executions in {seconds:.0f} s, {figures['begins']} places of the code reached by the ten "
        f"files, {figures['reached']} by all {figures['corpus']} inputs that were kept, {len(bad)} kinds of faults"
    )
    return int(bool(bad))


if __name__ == "__main__":
    main()
