"""Run every measurement of this folder, one after another, and write their output on one page.

`python -m benchmarks --page docs/benchmarks.md` is stopped after BUDGET_SECONDS. Inputs are those of the default
profile where data/ has them (after `make run`), else random weights and invented texts; the page says which.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measuring import machine, markdown

ROOT = Path(__file__).parents[1]
BUDGET_SECONDS = 4200  # of all measurements
# Arguments by measurement; a path that does not exist is left out with its option.
PROGRAMS: dict[str, list[str]] = {
    "train": [
        *("--teacher", "data/prepare_teacher/model"),
        *("--tokens", "data/prepare_corpus/tokens"),
        *("--splits", "data/tasks/r8"),
    ],
    "memory": ["--checkpointing"],
    "infer": ["--operators"],
    "sparse": [*("--processor", "avx512vnni", "amx", "avxvnni", "avx2"), *("--export", "data/export/r8")],
    "size": ["--export", "data/export/r8"],
    "corpus": ["--raw", "data/raw/corpus", "--tokenizer", "data/raw/minilm-l6"],
    "overhead": ["--rounds", "2"],
}


def existing(words: list[str]) -> list[str]:
    """The arguments without the options whose path is not there."""
    words_left: list[str] = []
    for word in words:
        if word.startswith("data/") and not (ROOT / word).exists():
            words_left.pop()
        else:
            words_left.append(word)
    return words_left


def section(name: str, arguments: list[str], *, end: float) -> tuple[str, bool]:
    """The output of a measurement with its command and wall time, and whether it succeeded.

    end: time.monotonic() at which it is stopped.
    """
    command, began = ["-m", f"benchmarks.{name}", *arguments], time.monotonic()
    print(f"python {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=max(1.0, end - began)
        )
        printed, good = done.stdout.strip(), done.returncode == 0
    except subprocess.TimeoutExpired:
        printed, good = "", False
    took = f"{time.monotonic() - began:.0f} s" if good else "FAILED"
    return f"`python {' '.join(command)}`, {took}:\n\n{printed}\n", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md")
    parser.add_argument("--only", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    args = parser.parse_args()
    named = [name for name in args.only if (ROOT / f"benchmarks/{name}.py").exists()]
    end = time.monotonic() + BUDGET_SECONDS
    done = {name: section(name, existing(PROGRAMS[name]), end=end) for name in named}
    note = (
        "Written by `make bench`. Ratios are of sides measured in turn in the same run; a bar is what a side must reach. "
        "Times are of this machine:"
    )
    parts = ["# Benchmarks", note, markdown(machine()), *(text.strip() for text, _ in done.values())]
    args.page.write_text("\n\n".join(parts) + "\n")
    failed = [name for name, (_, good) in done.items() if not good]
    if failed:
        sys.exit(f"no measurement of: {', '.join(failed)}. Their output stands above; the page has the others.")
    print(f"{len(done)} measurements in {args.page}")


if __name__ == "__main__":
    main()
