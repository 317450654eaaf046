"""Semantic search by sentence embeddings, dense fp32 against int8: what is found, bytes, and queries a second.

`--export` names a folder with dense.onnx and int8.onnx of a task of `kind: embedding`; `--table` has texts and their groups.
`--texts` of its rows are the index, `--queries` others ask. A query is embedded, then compared with every text of the index.
Recall: of dense fp32's ten nearest texts. nDCG: of the ten nearest texts, by the groups. Spearman: of all similarities of a
query and a text, against dense fp32's. Time is of one query at a time, and of one call of 1 x 128 tokens; sides take turns.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from scipy import stats

from benchmarks.measuring import Row, arguments, bar, in_turn, publish, ratio
from pruneonce.deployment.packing import packed_bytes
from pruneonce.errors import DataError
from pruneonce.serving.predictor import Predictor
from pruneonce.sources import tables
from pruneonce.tasks.embedding import ANSWERS, ASKS, Embedding
from pruneonce.terminal import one_line_errors

NEAREST = 10
TOKENS = 128  # of a call whose time is measured, or as many as the model takes
SIDES = {"dense fp32": ("dense", "stock"), "int8, stock": ("int8", "stock"), "int8, sparse": ("int8", "sparse")}


def embed(model: Predictor, texts: Sequence[str]) -> np.ndarray:
    """float[texts, width]"""
    return np.array([answer["embedding"] for answer in model(texts)], dtype=np.float32)


def nearest(index: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """int[queries, NEAREST]: the texts of each query, the nearest one first."""
    return np.argsort(-(queries @ index.T), axis=1, kind="stable")[:, :NEAREST]


def ndcg(queries: np.ndarray, index: np.ndarray, groups: Sequence[str]) -> float:
    """As `evaluate` measures it: the queries ask and the index answers. groups: of the queries, then of the index."""
    sides = [ASKS] * len(queries) + [ANSWERS] * len(index)
    vectors = np.concatenate([queries, index])
    split = Dataset.from_dict({"label": vectors.tolist(), "group": list(groups), "side": sides})
    count, scorers = Embedding("ndcg", "mean", normalize=True, max_tokens=TOKENS).scorers(split, list(vectors))
    return scorers["ndcg"](np.arange(count))


def measure(export: Path, rows: Sequence[tuple[str, str]], *, queries: int, threads: int, rounds: int) -> list[Row]:
    """A row for each side. rows: (text, group); the first `queries` of them ask. Raises DataError for too few rows."""
    if len(rows) < queries + NEAREST:
        raise DataError(
            f"expected {queries + NEAREST} texts or more, {queries} of them to ask and {NEAREST} to find, found "
            f"{len(rows)}. Give fewer --queries, or another --table."
        )
    texts, groups = [text for text, _ in rows], [group for _, group in rows]
    models = {name: Predictor(export / f"{f}.onnx", threads=threads, execution=how) for name, (f, how) in SIDES.items()}
    vectors = {name: embed(model, texts) for name, model in models.items()}
    dense = vectors["dense fp32"]
    wanted, alike = nearest(dense[queries:], dense[:queries]), (dense[:queries] @ dense[queries:].T).ravel()

    def asked(name: str) -> Callable[[], float]:
        def seconds() -> float:
            began = time.perf_counter()
            for text in texts[:queries]:
                nearest(vectors[name][queries:], embed(models[name], [text]))
            return time.perf_counter() - began

        return seconds

    def called(name: str) -> Callable[[], float]:
        ids = np.ones((1, min(TOKENS, models[name].about["max_tokens"])), dtype=np.int64)  # which words, takes no time
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

        def seconds() -> float:
            began = time.perf_counter()
            for _ in range(20):
                models[name].session.run(["embedding"], batch)
            return time.perf_counter() - began

        return seconds

    ask, call = ({name: side(name) for name in SIDES} for side in (asked, called))
    took, calls = in_turn(ask, rounds), in_turn(call, rounds * 3)
    found: list[Row] = []
    for name, (file, _) in SIDES.items():
        index, questions = vectors[name][queries:], vectors[name][:queries]
        best = nearest(index, questions)
        same = [len(set(a) & set(b)) / NEAREST for a, b in zip(best, wanted, strict=True)]
        speed = ratio(calls["dense fp32"], calls[name])
        limit = {"bar at 1 x 128": bar(">= 3 x", met=speed >= 3)} if name == "int8, sparse" else {}
        found.append(
            {
                "model": name,
                "recall": float(np.mean(same)),
                "nDCG": ndcg(questions, index, groups),
                "Spearman": float(stats.spearmanr(alike, (questions @ index.T).ravel()).statistic),
                "packed MB": packed_bytes(export / f"{file}.onnx") / 1e6,
                "queries a second": queries / float(np.median(took[name])),
                "times dense": ratio(took["dense fp32"], took[name]),
                "at 1 x 128": speed,
                **limit,
            }
        )
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--export", type=Path, default=Path("data/export/sentences"), help="default: %(default)s")
    parser.add_argument("--table", type=Path, default=Path("data/raw/corpus/newsgroups.tab"), help="default: %(default)s")
    parser.add_argument("--columns", nargs=2, metavar=("TEXT", "GROUP"), default=("Text", "Category"))
    parser.add_argument("--skip-rows", type=int, default=2, help="lines after the header that are not data (%(default)s)")
    parser.add_argument("--texts", type=int, default=2000, help="in the index (%(default)s)")
    parser.add_argument("--queries", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of a call (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args()
    every = [
        row
        for row in tables.read_as(args.table, args.columns, lambda text, group: (text, group), skip_rows=args.skip_rows)
        if row[0] and row[0].strip()
    ]
    rows = random.Random(1).sample(every, min(len(every), args.texts + args.queries))
    publish(
        "Search", measure(args.export, rows, queries=args.queries, threads=args.threads, rounds=args.rounds), file=args.json
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
