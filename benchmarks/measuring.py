"""The parts that all measurements share: sides in turn, ratios, Markdown, JSON, facts about the machine."""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Compute:
    """An `engine.Compute` on the CPU."""

    seed: int = 1
    device: str = "cpu"
    precision: str = "auto"
    threads: int = 0


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every side once a round, so that a machine that slows down slows all of them. Returns a value a round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    return found


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of value / base in the same round."""
    return median(a / b for a, b in zip(values, base, strict=True))


def bar(limit: str, *, met: bool) -> str:
    """A bar and whether it was met: ">= 4 x, missed"."""
    return f"{limit}, {'met' if met else 'missed'}"


def markdown(rows: Sequence[Row]) -> str:
    """A table; columns in order of appearance, floats with three significant digits and thousands separated."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(c, "")) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the one option that all measurements share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    return parser


def publish(title: str, rows: Sequence[Row], note: str = "", *, file: Path | None) -> None:
    """Print a section of Markdown; add its rows to `file`, which holds {title: rows}."""
    print(f"## {title}\n\n{markdown(rows)}\n" + (f"\n{note}\n" if note else ""), flush=True)
    if file:
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, title: list(rows)}, indent=1) + "\n")


def machine() -> list[Row]:
    """Processor, its instructions that matter here, cores, memory, versions. No host name."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines()) if info.exists() else {}
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [f for f in fields.get("flags", "").split() if f.startswith(("avx2", "avx512f", "avx512_", "avx_vnni", "amx_"))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("torch", "transformers", "accelerate", "onnxruntime", "tokenizers", "dvc", "prefect", "mlflow")
    return [
        {"what": "processor", "value": f"{fields.get('model name', platform.processor())}, {platform.machine()}"},
        {"what": "instructions", "value": " ".join(flags) or "unknown"},
        {"what": "cores", "value": len(os.sched_getaffinity(0))},
        {"what": "memory GiB", "value": round(memory)},
        {"what": "versions", "value": f"python {platform.python_version()}, " + ", ".join(_version(n) for n in names)},
    ]


def _version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"
