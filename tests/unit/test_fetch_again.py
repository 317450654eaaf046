"""A fetch that was killed begins anew, or goes on after what had arrived whole."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sources import HubSource
from pruneonce.sources import fetch
from stages import fetch as fetch_stage
from tests.conftest import ROOT, wait_for
from tests.unit.test_sources import index, tree

__all__ = ["index"]  # a fixture
MEMBERS = {"t.txt": "pkg/data/a.txt"}


class Killed(BaseException):
    """As sudden as the end of the process, for what runs in it."""


def killed(*_, **__):
    raise Killed


def package(tmp_path, sha256):
    keep = Kept(tmp_path / "scratch")
    fetch.fetch_package("pruneonce-fixture==1.0", sha256, MEMBERS, tmp_path / "out", keep=keep)
    return tree(tmp_path / "out")


def test_a_verified_package_is_not_downloaded_again(index, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(fetch, "unpack", killed)
        with pytest.raises(Killed):
            package(tmp_path, index)
    shutil.rmtree(tmp_path / "index")
    assert package(tmp_path, index) == {"t.txt": b"A"}


def test_a_kept_package_that_was_damaged_is_downloaded_again(index, tmp_path, capsys):
    package(tmp_path, index)
    (wheel,) = (tmp_path / "scratch").glob("*/download/*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert package(tmp_path, index) == {"t.txt": b"A"}
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == index
    assert "found it changed: it is made again." in capsys.readouterr().err


def test_what_a_killed_download_left_is_not_taken_for_whole(index, tmp_path, monkeypatch):
    keep = Kept(tmp_path / "scratch")
    for left in ("download.part", "pip"):
        (keep.folder / left).mkdir()
        (keep.folder / left / "pruneonce_fixture-1.0-py3-none-any.whl").write_bytes(b"half")
    assert package(tmp_path, index) == {"t.txt": b"A"}
    assert sorted(path.name for path in keep.folder.iterdir()) == ["download", "download.sha256"]


FETCH = """
import sys
from pathlib import Path
from pipeline.kept import Kept
from pruneonce.sources.fetch import fetch_package
folder = Path(sys.argv[1])
fetch_package("pruneonce-fixture==1.0", "0" * 64, {".": "x"}, folder / "out", keep=Kept(folder / "scratch"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends children with their parent")
def test_pip_ends_with_a_killed_fetch(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        env = {**os.environ, "PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull, "PIP_TIMEOUT": "100"}
        stage = subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path)], env=env, cwd=ROOT)
        silent.settimeout(60)
        connection, _ = silent.accept()  # pip asks
        (pip,) = psutil.Process(stage.pid).children(recursive=True)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
        wait_for("pip to end", lambda: not pip.is_running() or pip.status() == psutil.STATUS_ZOMBIE, seconds=10, every=0.05)
        connection.close()
    assert not (tmp_path / "out").exists()


def model(monkeypatch, names, *, last):
    """The hub's files, which arrive one by one; with `last`, the process is killed after the first."""
    calls = list[str]()

    def download(repository, *, revision, local_dir, allow_patterns):
        assert list(local_dir.iterdir()) == [], "nothing of the download before"
        for name in names:
            (local_dir / name).write_bytes(name.encode())
            calls.append(name)
            if not last:
                raise Killed

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return calls


def test_a_model_is_downloaded_anew_until_it_is_whole_and_then_never_again(tmp_path, monkeypatch):
    names, out = ["config.json", "model.safetensors"], tmp_path / "raw" / "x"
    keep = Kept(tmp_path / "scratch")
    model(monkeypatch, names, last=False)
    with pytest.raises(Killed):
        fetch.fetch_model("a/b", "main", out, keep=keep)
    assert not out.exists()
    calls = model(monkeypatch, names, last=True)
    with monkeypatch.context() as patched:
        patched.setattr("pruneonce.sources.folders.shutil.copyfileobj", killed)
        with pytest.raises(Killed):
            fetch.fetch_model("a/b", "main", out, keep=keep)
    assert calls == names
    fetch.fetch_model("a/b", "main", out, keep=keep)
    assert calls == names
    assert tree(out) == {name: name.encode() for name in names}


def test_a_split_that_arrived_whole_is_not_downloaded_again(tmp_path, monkeypatch):
    """The stage, killed in its second split."""
    (tmp_path / "repository").mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": [split]}), tmp_path / "repository" / f"{split}-00000-of-00001.parquet")
    known = {"repository": str(tmp_path / "repository"), "kind": "dataset", "revision": "0" * 40, "config": None}
    source = HubSource.model_validate({**known, "splits": {"train": "train", "test": "test"}, "expects": None})
    asked, killing = list[str](), ["test"]

    def load(*args, split, **kwargs):
        asked.append(split)
        if split in killing:
            raise Killed
        return load_dataset(*args, split=split, **kwargs)

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(Killed):
        fetch_stage.run("x", tmp_path / "out", fetch=source, log=Log(tmp_path / "scratch"))
    killing.clear()
    assert fetch_stage.run("x", tmp_path / "out", fetch=source, log=Log(tmp_path / "scratch"))["files"] == 2
    assert asked == ["train", "test", "test"]
    found = {path.stem: pq.read_table(path).to_pydict() for path in Path(tmp_path / "out").iterdir()}
    assert found == {split: {"text": [split]} for split in ("train", "test")}
