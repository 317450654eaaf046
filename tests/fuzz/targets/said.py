"""What an exported model says of itself: the JSON in its metadata, its tokenizer, damaged; answered, inspected, traced."""

import json
from pathlib import Path
from random import Random
from typing import Any

import onnx

from pipeline.lineage import model_file
from pruneonce.deployment import overview
from pruneonce.deployment.inspect import PRUNABLE
from pruneonce.deployment.provenance import ABOUT, TOKENIZER
from pruneonce.errors import DataError
from pruneonce.serving.predictor import Predictor
from tests.fuzz import answering, damage
from tests.fuzz.case import Files

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 14

ENTRIES = (ABOUT, ABOUT, ABOUT, TOKENIZER, TOKENIZER, PRUNABLE, "other")
CHANGES = ("replace", "replace", "replace", "remove", "twice", "bytes", "bytes")
_whole: dict[str, str] = {}


def start() -> None:
    _whole[TOKENIZER] = answering.tokenizer()
    for kind in answering.KINDS:
        answering.graph(kind)


def make(draw: Random) -> Files:
    kind = draw.choice(list(answering.KINDS))
    pair = draw.choice((None, None, "pair"))
    about = answering.said(kind, pair=pair)
    if draw.random() < 0.2:  # sizes that fit, and that do not
        about["max_tokens"], about["kind"]["stride_tokens"] = draw.randint(1, 40), draw.randint(0, 24)
    entries = {ABOUT: json.dumps(about), TOKENIZER: _whole[TOKENIZER], PRUNABLE: '{"w0": "in,out"}'}
    proto = onnx.load_model_from_string(answering.file(kind, entries))
    for _ in range(draw.choice((1, 1, 2))):
        name, change = draw.choice(ENTRIES), draw.choice(CHANGES)
        found = [entry for entry in proto.metadata_props if entry.key == name]
        if change == "remove" and found:
            proto.metadata_props.remove(found[0])
        elif found and change == "bytes":
            found[0].value = damage.data(found[0].value.encode(), draw).decode("utf-8", "replace")
        else:
            entry = found[0] if found and change == "replace" else proto.metadata_props.add()
            entry.key, entry.value = name, _damaged(entry.value, draw)
    content = proto.SerializeToString()
    if draw.random() < 0.05:
        content = content.replace(ABOUT.encode(), b"\xff" * len(ABOUT), 1)
    return {"model.onnx": content, "texts.json": json.dumps(draw.choice(TEXTS)).encode()}


TEXTS: tuple[Any, ...] = (
    ["the rain"],
    ["the rain", "heavy bread"],
    ["a", "b" * 3000],
    [""],
    [["the rain", "salt and soup " * 9]],
)


def _damaged(text: str, draw: Random) -> str:
    try:
        return damage.dumped(damage.document(json.loads(text), draw)).decode("utf-8", "replace")
    except (ValueError, RecursionError):
        return draw.choice(("", "{}", "null", "[" * 5000, "7" * 5000, '{"format": 1}', *damage.WORDS[:-2])).replace(
            "\ud800", "?"
        )


def run(folder: Path) -> None:
    file = Path("model.onnx")
    told = model_file.read(file)
    assert "\n" not in model_file.said(told.about)
    found = overview.of(file, file, execution="stock", threads=1)
    json.dumps(overview.as_json(found))
    assert all(len(line) < 100_000 for line in overview.lines(found))
    predictor = Predictor(file, threads=1, execution="stock")
    rows = json.loads(Path("texts.json").read_text())
    try:
        answers = predictor(rows if isinstance(rows[0], list) else [rows])
    except DataError:
        answers = predictor(rows)
    json.dumps(answers, allow_nan=False)
