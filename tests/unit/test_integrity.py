"""Objects of DVC's cache, read as they are: listings of any length and names, and whether bytes are what a name says."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline import integrity


def stored(folder: Path, content: bytes, ending: str = ".dir") -> Path:
    md5 = hashlib.md5(content).hexdigest() + ending
    path = folder / md5[:2] / md5[2:]
    path.parent.mkdir()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("names", [["\U0001f600", "a b", "\udcff"], [f"{n:05}" for n in range(20_000)], []])
def test_a_listing_is_read_whole(tmp_path, names):
    files = {name: hashlib.md5(name.encode("utf-8", "surrogateescape")).hexdigest() for name in names}
    path = stored(tmp_path, json.dumps([{"md5": md5, "relpath": name} for name, md5 in files.items()]).encode())
    assert integrity.listed(path) == files
    assert integrity.whole(path)


@pytest.mark.parametrize("content", [b"", b"[{", b"\xff\xfe", b"1", b"[1]", b'[{"relpath": "a"}]', b"[" * 100_000])
def test_a_damaged_listing_is_none(tmp_path, content):
    path = stored(tmp_path, b"[]")
    path.write_bytes(content)
    assert integrity.listed(path) == {}
    assert not integrity.whole(path)


def test_what_is_not_there_is_not_whole(tmp_path):
    assert integrity.listed(tmp_path / "ab" / "cd.dir") == {}
    assert not integrity.whole(tmp_path / "ab" / "cd.dir")
    assert not integrity.whole(tmp_path)
    assert integrity.whole(stored(tmp_path, b"a file", ""))
