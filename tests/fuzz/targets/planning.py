"""`pruneonce plan` on damaged sources and configurations of models."""

import json
import shutil
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.params.reading import read_yaml
from pipeline.plan import costs, page
from tests.conftest import TINY
from tests.fuzz import damage
from tests.fuzz.case import ROOT, Files

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 10

CONFIG = json.loads((TINY / "model/config.json").read_text())
DOCUMENT = read_yaml(ROOT / "profiles/tiny.yaml")
TYPES = ("bert", "roberta", "distilbert", "albert", "deberta-v2", "mpnet", "modernbert", "electra", "gpt2", "no-such", "t5")
SIZES = (0, -1, 1, 7, 10**12, 2**63, 10**30, 1.5, "8", None, [8], True, float("nan"))


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [f"the cook {n}" for n in range(40)], "label": ["a", "b"] * 20}), sink)
    return sink.getvalue().to_pybytes()


PARQUET = _parquet()
TSV = (TINY / "text/topic-train.tsv").read_text()


def make(draw: Random) -> Files:
    kind = draw.randrange(4)
    if kind == 0:
        return {"tests/tiny/model/config.json": _config(draw)}
    if kind == 1:
        return {"tests/tiny/text/topic-train.tsv": damage.text(TSV, draw)}
    if kind == 2:
        return {"tests/tiny/text/topic-train.parquet": damage.data(PARQUET, draw)}
    document = damage.document({key: DOCUMENT[key] for key in ("common", "fetch", "fetch_local", "tasks", "evaluate")}, draw)
    return {"params.yaml": damage.dumped({**DOCUMENT, **document} if isinstance(document, dict) else document)}


def _config(draw: Random) -> bytes:
    if draw.random() < 0.2:
        return damage.data(json.dumps(CONFIG).encode(), draw)
    config = {**CONFIG, "model_type": draw.choice(("bert",) * 5 + TYPES)}
    for _ in range(draw.randint(1, 2)):
        config[draw.choice([key for key in CONFIG if key != "model_type"])] = draw.choice(SIZES)
    return damage.dumped(config if draw.random() < 0.7 else damage.document(config, draw))


def run(folder: Path) -> None:
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        _lay(Path("tests/tiny/model", name))
    for name in ("topic-train.tsv", "topic-test.tsv", "corpus.txt"):
        _lay(Path("tests/tiny/text", name))
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    if not Path("params.yaml").exists():
        document = json.loads(json.dumps(DOCUMENT))
        if Path("tests/tiny/text/topic-train.parquet").exists():
            document["fetch_local"]["topic"]["members"] = {"train.parquet": "topic-train.parquet"}
        Path("params.yaml").write_text(json.dumps(document))
    list(page.lines(None, costs.Rate(1, 1.0, None)))


def _lay(path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, path)
