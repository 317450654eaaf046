"""Tables of every format, for every kind of task: rows, examples, splits."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.history import Log
from pipeline.params.metrics import METRICS
from pipeline.params.reading import read_yaml
from pipeline.params.sections import Common, PrepareCorpus, PrepareTask
from stages import prepare_corpus, prepare_task
from tests.conftest import TINY
from tests.fuzz import damage
from tests.fuzz.case import ROOT, Files

OUTS = ("out/task.json",)
SECONDS = 20.0
SHARE = 18

DOCUMENT = read_yaml(ROOT / "profiles/tiny.yaml")
TEXTS = (
    "the cook ruined a garlic sauce",
    "heavy rain cooled the harbour",
    "fresh bread smelled of snow",
    "a warm breeze at last",
)
CELLS: dict[str, Any] = {
    "classification": ("weather", "kitchen"),
    "regression": (0.5, 3, 4.25),
    "multi_label": (["a", "b"], ["a"], ["b"], []),
    "token_classification": (["O", "B-X"], ["B-X", "I-X"], ["O", "O"]),
    "question_answering": ({"text": ["bread"], "answer_start": [6]}, {"text": ["heavy"], "answer_start": [0]}),
}
SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".parquet")


def _rows(kind: str, draw: Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        text: Any = f"{draw.choice(TEXTS)} {number}"
        label: Any = draw.choice(CELLS[kind])
        if kind == "token_classification":
            text, label = text.split()[:2], label
        rows.append({"text": text, "pair": f"heavy bread {number}", "label": label})
    return rows


def _flat(cell: Any) -> str:
    return (
        " ".join(map(str, cell))
        if isinstance(cell, list)
        else damage.dumped(cell).decode()
        if isinstance(cell, dict)
        else str(cell)
    )


def table(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Rows as a file of this kind."""
    if suffix == ".jsonl":
        return b"\n".join(damage.dumped(row) for row in rows) + b"\n"
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        try:
            table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            table = pa.table(
                {"text": [str(row)[:500].encode("utf-8", "replace").decode() for row in rows], "label": ["a"] * len(rows)}
            )
        pq.write_table(table, sink)
        return sink.getvalue().to_pybytes()
    mark = "," if suffix == ".csv" else "\t"
    names = list(dict.fromkeys(str(key) for row in rows for key in row)) if rows else ["text"]
    lines = [mark.join(names), *(mark.join(_flat(row.get(name, "")) for name in names) for row in rows)]
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def make(draw: Random) -> Files:
    kind = draw.choice(list(CELLS))
    suffix = draw.choice(SUFFIXES if kind != "question_answering" else SUFFIXES[3:])
    rows = _rows(kind, draw, draw.choice((0, 1, 24, 24, 24, 24)))
    if draw.random() < 0.6 and rows:
        rows = [row if draw.random() < 0.95 else damage.document(row, draw) for row in rows]
        rows = [row for row in rows if isinstance(row, dict)]
    content = table(rows, suffix)
    if draw.random() < 0.4:
        content = (
            damage.data(content, draw)
            if suffix == ".parquet" or draw.random() < 0.3
            else damage.text(content.decode("utf-8", "replace"), draw)
        )
    section = {
        "kind": kind,
        "metric": METRICS[kind][0],
        "skip_rows": draw.choice((0,) * 9 + (2, 10**6)),
        "validation_ratio": 0.25,
        "test_ratio": 0.25,
        "labels": draw.choice((None,) * 5 + (["a", "b"],)),
    }
    section["pair"] = "pair" if kind == "question_answering" or (kind == "classification" and draw.random() < 0.3) else None
    files = {f"source/train{suffix}": content, "section.json": json.dumps(section).encode()}
    if draw.random() < 0.3:
        files[f"source/test{draw.choice(SUFFIXES)}"] = content
    return files


def run(folder: Path) -> None:
    section = json.loads(Path("section.json").read_text())
    block: dict[str, Any] = {
        **DOCUMENT["prepare_task"],
        "source": "source",
        "text": "text",
        "label": "label",
        "stride_tokens": 4,
        "max_tokens": 24,
        **section,
    }
    common = Common.model_validate({**DOCUMENT["common"], "model": "model"})
    if section["kind"] == "classification" and section["pair"] is None and section["labels"]:
        corpus = {
            **DOCUMENT["prepare_corpus"],
            "documents": [{"source": "source", "split": "train", "column": "text", "skip_rows": 0}],
        }
        p = PrepareCorpus.model_validate(corpus)
        Path("model").symlink_to(TINY / "model")
        Path("tasks").mkdir()
        Path("names.json").write_text("[]")
        log = Log(folder / "scratch")
        prepare_corpus.run(
            Path(), Path("tasks"), Path("names.json"), folder / "out", common=common, prepare_corpus=p, log=log
        )
        return
    wanted = PrepareTask.model_validate(block)
    prepare_task.run("task", Path("source"), TINY / "model", folder / "out", common=common, prepare_task=wanted)
