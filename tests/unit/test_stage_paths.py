"""What a stage reads and where it writes: a path that cannot be is one line, before anything is computed."""

import errno
import os
from pathlib import Path

import pytest

from pipeline import stage
from pipeline.lineage import verify
from pipeline.lineage.graph import Node
from pipeline.lineage.history import NONE
from pipeline.tracking.lock import Stage
from pruneonce.errors import DataError

LONG = "x" * 300


@pytest.mark.parametrize(
    ("name", "found"), [("nowhere", "none"), (LONG, "File name too long"), ("pipe", "a device or a pipe")]
)
def test_a_dep_that_cannot_be_read(tmp_path, name, found):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=rf"expected .*{name}, found {found}\. Get it with: dvc repro prune"):
        stage._check_deps([tmp_path, tmp_path / name], "prune")
    stage._check_deps([tmp_path], "prune")


@pytest.mark.parametrize("name", ["file/out", f"{LONG}/out", f"folder/{LONG}", "a\0b/out"])
def test_an_out_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected to write"):
        stage._make_room(tmp_path / "new/out", tmp_path / name)
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_a_lost_disk_is_no_wrong_path(tmp_path, monkeypatch, number):
    def mkdir(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OSError, match=os.strerror(number)):
        stage._make_room(tmp_path / "out/a")


@pytest.mark.parametrize("params", ["fetch: word", "fetch: {topic: word}", "fetch: null", "[]", "{}"])
def test_a_source_that_params_has_no_longer(tmp_path, monkeypatch, params):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params)
    source = {"what": "a==1", "sha256": "0" * 64}
    node = Node(Stage("fetch@topic", {}, {}, {"fetch.topic": {"package": "a==1"}}), NONE)
    assert verify._source(node, source, here=False).note.startswith("params.yaml has another pin")
