"""dvc.lock, damaged: read back, traced."""

import json
import shutil
from pathlib import Path
from random import Random
from unittest import mock

from pipeline.lineage import trace
from pipeline.lineage.facts import Facts
from pipeline.tracking import lock
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 12

MD5 = "d41d8cd98f00b204e9800998ecf8427e"  # of no bytes
STAGES = {
    "fetch@topic": {
        "cmd": "true",
        "deps": [{"path": "stages/fetch.py", "hash": "md5", "md5": MD5, "size": 0}],
        "params": {"params.yaml": {"fetch.topic": {"package": "a==1", "members": {"train.csv": "b"}}}},
        "outs": [{"path": "data/raw/topic", "hash": "md5", "md5": f"{MD5}.dir", "size": 0, "nfiles": 1}],
    },
    "export@topic": {
        "cmd": "true",
        "deps": [{"path": "data/raw/topic", "md5": f"{MD5}.dir"}],
        "outs": [{"path": "data/onnx/topic/model.onnx", "md5": MD5, "size": 0}],
    },
}
WHOLE = {"schema": "2.0", "stages": STAGES}


def make(draw: Random) -> Files:
    kind = draw.randrange(3)
    if kind == 0:
        content = damage.dumped(damage.document(WHOLE, draw))
    elif kind == 1:
        content = damage.text(json.dumps(WHOLE, indent=1), draw)
    else:
        content = damage.data(json.dumps(WHOLE).encode(), draw)
    return {
        draw.choice(("dvc.lock", "dvc.lock", "study/dvc.lock")): content,
        "file.json": json.dumps(
            draw.choice(("data/onnx/topic/model.onnx", "copy.onnx", "data/raw/topic", "nowhere"))
        ).encode(),
    }


def lay(folder: Path) -> None:
    """The folder that the lock file speaks of."""
    if not (folder / "dvc.lock").exists():
        (folder / "dvc.lock").write_text(json.dumps(WHOLE))
    for name in ("data/onnx/topic/model.onnx", "copy.onnx", "data/raw/topic/train.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.rmtree(folder / ".pruneonce", ignore_errors=True)


def run(folder: Path) -> None:
    lay(folder)
    with mock.patch.object(trace, "gather", return_value=Facts()):  # a store of MLflow a case is too dear
        list(trace.short(json.loads(Path("file.json").read_text())))
    lock.locked()
