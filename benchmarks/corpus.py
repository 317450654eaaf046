"""Corpus preparation against the tokenizer alone: characters a second of `write_corpus` and of `encode_batch`.

Both read the same texts, each once: a repeated one would cost write_corpus nothing. They run on all cores, and on one
core with RAYON_NUM_THREADS=1. `write_corpus` also finds duplicates, keeps test texts out, packs and writes,
and keeps its shards for a run that is killed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from benchmarks.measuring import arguments, bar, in_turn, publish, ratio
from pipeline.kept import Kept
from pruneonce.language import preparation
from pruneonce.models import checkpoint
from pruneonce.sources import tables

ROOT = Path(__file__).parents[1]
COLUMNS = {"newsgroups": "Text", "r52": "Text", "friends": "Quote"}  # of the default profile's corpus


def texts(raw: Path | None, characters: int) -> list[str]:
    """Distinct texts of at most `characters` in all: the default profile's corpus, or invented words."""
    found: dict[str, None] = {}
    if raw:
        for split, column in COLUMNS.items():
            path = tables.find_split(raw, split)
            found |= dict.fromkeys(row[column] for row in tables.read(path, [column], skip_rows=2) if row[column])  # type: ignore[arg-type]
    else:
        draw = np.random.default_rng(0)
        words = ["".join(map(chr, draw.integers(97, 123, n))) for n in draw.integers(2, 10, 20_000)]
        while sum(map(len, found)) < characters:
            picked = (draw.zipf(1.3, (1000, 80)) - 1) % len(words)
            found |= dict.fromkeys(" ".join(words[i] for i in row) for row in picked)
    order = np.random.default_rng(0).permutation(len(found))
    shuffled, total, chosen = list(found), 0, list[str]()
    for text in (shuffled[i] for i in order):
        total += len(text)
        if total > characters:
            break
        chosen.append(text)
    return chosen


def measure(documents: list[str], tokenizer: PreTrainedTokenizerBase, rounds: int) -> dict[str, list[float]]:
    """Characters a second of each side, by round."""
    size = sum(map(len, documents))
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()

    def alone() -> float:
        began = time.perf_counter()
        for start in range(0, len(documents), 1000):
            for found in backend.encode_batch(documents[start : start + 1000], add_special_tokens=False):
                found.ids  # noqa: B018
        return size / (time.perf_counter() - began)

    def ours() -> float:
        settings = {"block_tokens": 128, "held_out_ratio": 0.02, "max_tokens": None, "exclude": (), "seed": 1}
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            keep = Kept(Path(folder, "scratch"))
            preparation.write_corpus(documents, tokenizer, Path(folder), keep=keep, **settings)  # type: ignore[arg-type]
            return size / (time.perf_counter() - began)

    return in_turn({"write_corpus": ours, "encode_batch alone": alone}, rounds)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--raw", type=Path, help="data/raw/corpus of the default profile; default: invented words")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "tests/tiny/model", help="a model's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=4.0, help="of text")
    parser.add_argument("--here", action="store_true", help="on this process's cores only, as JSON")
    args = parser.parse_args()
    if args.here:
        documents = texts(args.raw, int(1e6 * args.megabytes))
        print(json.dumps(measure(documents, checkpoint.load_tokenizer(args.tokenizer), args.rounds)))
        return
    cores, rows = sorted(os.sched_getaffinity(0)), []
    for count in sorted({1, len(cores)}):
        words = [sys.executable, "-m", "benchmarks.corpus", "--here", *sys.argv[1:]]
        env = {**os.environ, "RAYON_NUM_THREADS": str(count)}
        os.sched_setaffinity(0, cores[:count])
        done = subprocess.run(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
        os.sched_setaffinity(0, cores)
        rates = json.loads(done.stdout.splitlines()[-1])
        ours, alone = rates.values()
        rows += [
            {"cores": count, "side": name, "MB/s a core": max(found) / 1e6 / count, "ratio": "", "bar": ""}
            for name, found in rates.items()
        ]
        found = ratio(ours, alone)
        rows[-2] |= {"ratio": found, "bar": bar(">= 0.8", met=found >= 0.8)}
    publish(f"Corpus preparation, {args.megabytes:g} MB of text", rows, file=args.json)


if __name__ == "__main__":
    main()
