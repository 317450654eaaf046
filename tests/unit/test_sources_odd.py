"""Sources that are not as they should be: one error that says so, nothing read from elsewhere, nothing left behind."""

import errno
import io
import os
import random
import re
import socket
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sources import HubSource, LocalSource
from pruneonce.errors import SourceError, UnsafeArchive
from pruneonce.sources import archives, checks, fetch, local
from stages import fetch as fetch_stage
from stages import fetch_local
from tests.unit.test_sources import FILES, make_tar, make_zip, tree


@pytest.fixture
def given(tmp_path) -> Path:
    """A folder as users have them, with a secret beside it."""
    folder = tmp_path / "given"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"A")
    (folder / "sub" / "deep" / "b.txt").write_bytes(b"B")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "elsewhere").mkdir()
    return folder


def nothing_left(folder: Path) -> None:
    assert not folder.exists() or not list(folder.iterdir())


def refused(given: Path, says: str, members: dict[str, str] | None = None) -> None:
    """With one message, and nothing written, not even the folder that the source's lies in."""
    out = given.parent / "data" / "raw" / "x"
    with pytest.raises(SourceError, match=says):
        local.copy_local(given, members or {".": "."}, None, out)
    nothing_left(out.parent)


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../secret.txt", "../elsewhere", "..", "/etc", "../nothing", "../../../../../../../../etc/passwd"],
)
@pytest.mark.parametrize("place", [".", "sub/deep"])
def test_a_link_out_of_the_folder_is_not_followed(given, target, place):
    link = given / place / "link"
    link.symlink_to(os.path.join("../.." if place != "." and not target.startswith("/") else "", target))
    refused(given, rf"found {re.escape(str(given / place / 'link'))}, which leads to /.* \(cp -rL\)")


def test_a_link_by_a_link_out_of_the_folder_is_not_followed(given):
    (given / "sub" / "one").symlink_to("../two")
    (given / "two").symlink_to("../secret.txt")
    refused(given, r"which leads to .*secret\.txt", {"x": "sub"})


@pytest.mark.parametrize(
    "member", ["../secret.txt", "/etc/passwd", "sub/../../secret.txt", "..", "../elsewhere", "sub/deep/../../../secret.txt"]
)
def test_a_member_outside_of_the_path_is_not_taken(given, member):
    refused(given, "expected files that lie in .*/given, found .*which leads to /", {"x": member})


def test_a_member_that_is_a_link_out_is_not_taken(given):
    (given / "link.txt").symlink_to("../secret.txt")
    refused(given, r"which leads to .*secret\.txt", {"x.txt": "link.txt"})


def test_links_inside_are_followed_and_copied_as_what_they_lead_to(given, tmp_path):
    (given / "link.txt").symlink_to("sub/deep/b.txt")
    (given / "linked").symlink_to("sub")
    local.copy_local(given, {".": "."}, None, tmp_path / "out")
    expected = {"a.txt": b"A", "sub/deep/b.txt": b"B", "link.txt": b"B", "linked/deep/b.txt": b"B"}
    assert tree(tmp_path / "out") == expected
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "name").symlink_to("given")  # the path itself may be a link
    local.copy_local(tmp_path / "name", {"y": "sub/../linked"}, None, tmp_path / "two")
    assert tree(tmp_path / "two") == {"y/deep/b.txt": b"B"}


def test_a_snapshot_of_the_hubs_cache_is_refused_with_the_way_out(tmp_path):
    """Its files are links to ../../blobs. `path` may be the folder that holds both."""
    cache = tmp_path / "models--nobody--nothing"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_bytes(b"{}")
    (cache / "snapshots" / "abcd").mkdir(parents=True)
    (cache / "snapshots" / "abcd" / "config.json").symlink_to("../../blobs/0123")
    refused(cache / "snapshots" / "abcd", r"Make a copy .* \(cp -rL\), or make `path` a folder that holds both")
    local.copy_local(cache, {".": "snapshots/abcd"}, None, tmp_path / "out")
    assert tree(tmp_path / "out") == {"config.json": b"{}"}


@pytest.mark.parametrize("target", [".", "../..", "../../sub", "../deep"])
def test_a_link_to_a_folder_that_it_lies_in_does_not_go_on_for_ever(given, target):
    (given / "sub" / "deep" / "link").symlink_to(target)
    refused(given, "found a link to one that it lies in: .*/sub/deep/link")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pipe", "found a device or a pipe: .*/sub/odd"),
        ("socket", "found a device or a pipe: .*/sub/odd"),
        ("device", "which leads to /dev/zero"),
        ("dangling", "found a link to nothing: .*/sub/odd"),
        ("loop", "Symlink loop from .*/sub/odd"),
    ],
)
@pytest.mark.parametrize("member", [".", "sub"])
def test_what_is_neither_file_nor_folder_is_refused(given, monkeypatch, kind, says, member):
    odd = given / "sub" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        monkeypatch.chdir(odd.parent)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")
    else:
        odd.symlink_to({"device": "/dev/zero", "dangling": "nothing", "loop": "odd"}[kind])
    refused(given, says, {"x": member})


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/dev/zero", "expected a file or folder at /dev/zero, found a device or a pipe"),
        ("no/such", "expected a file or folder at no/such, found none"),
        ("a\0b", "expected a file or folder at a b, found none"),
        ("x" * 300, "File name too long"),
        ("", "expected files that lie in"),  # the current folder, which has no member of that name
    ],
)
@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_path_that_is_no_source(tmp_path, monkeypatch, path, says, sha256):
    monkeypatch.chdir(tmp_path)
    if sha256 and not path:
        says = "found a folder. Set its sha256 to null"
    with pytest.raises(SourceError, match=re.escape(says)):
        local.copy_local(Path(path), {"x": ".."}, sha256, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_dvc_does_not_keep_is_left_out(given, tmp_path):
    """It would be in the folder and not in its md5: the next checkout would remove it."""
    for name in (".git", "sub/.git", ".hg", ".dvc"):
        (given / name).mkdir()
        (given / name / "config").write_text("x")
    (given / "sub" / "deep" / ".git").write_text("gitdir: elsewhere")  # of a submodule
    (given / ".dvcignore").write_text("*.txt")
    (given / ".gitignore").write_text("*.pyc")
    os.mkfifo(given / ".git" / "pipe")
    (given / "empty").mkdir()
    local.copy_local(given, {".": "."}, None, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"A", "sub/deep/b.txt": b"B", ".gitignore": b"*.pyc"}
    assert not (tmp_path / "out" / "empty").exists()


def test_a_folder_without_files_is_no_source(given, tmp_path):
    (given / "empty").mkdir()
    refused(given, "expected files in .*given, found none", {".": "empty"})


@pytest.mark.parametrize("members", [{"x.txt": "a.txt", "./x.txt": "a.txt"}, {".": ".", "a.txt": "sub/deep/b.txt"}])
def test_two_files_of_one_name_are_refused(given, members):
    refused(given, "found two for|File exists", members)


@pytest.mark.parametrize("members", [{"x": "a.txt", "x/y": "a.txt"}, {"x/y": "a.txt", "x": "a.txt"}])
def test_a_name_that_is_file_and_folder_is_refused(given, members):
    refused(given, "File exists|Not a directory|Is a directory", members)


def test_a_folder_that_may_not_be_written_in_is_told(given, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SourceError, match=r"expected to copy .*given to .*data/raw/x, found: (Not a directory|File exists)"):
        local.copy_local(given, {".": "."}, None, tmp_path / "data" / "raw" / "x")


def test_after_an_error_what_was_there_stays_and_else_it_is_replaced(given, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_bytes(b"old")
    os.mkfifo(given / "zz")
    with pytest.raises(SourceError):
        local.copy_local(given, {".": "."}, None, out)
    assert tree(out) == {"old.txt": b"old"}
    (given / "zz").unlink()
    local.copy_local(given, {".": "."}, None, out)
    assert tree(out) == {"a.txt": b"A", "sub/deep/b.txt": b"B"}
    for stray in ("file", "link"):
        (tmp_path / stray).symlink_to("elsewhere") if stray == "link" else (tmp_path / stray).write_text("x")
        local.copy_local(given, {".": "a.txt"}, None, tmp_path / stray)
        assert tree(tmp_path / stray) == {"a.txt": b"A"}
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_is_the_stages_to_tell_and_leaves_nothing(given, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        local.copy_local(given, {".": "."}, None, tmp_path / "raw" / "x")
    nothing_left(tmp_path / "raw")


def test_the_stage_leaves_nothing_after_an_error(given, tmp_path):
    os.mkfifo(given / "zz")
    given_local = LocalSource(path=str(given), members={".": "."}, sha256=None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    with pytest.raises(SourceError, match="a device or a pipe"):
        fetch_local.run("x", given, tmp_path / "out", fetch_local=given_local)
    assert not (tmp_path / "out").exists()


def test_a_hub_source_that_is_not_what_was_expected_leaves_nothing(tmp_path, monkeypatch):
    def download(repository, *, revision, local_dir, allow_patterns):
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    known = {"repository": "a/b", "kind": "model", "revision": "0" * 40, "config": None, "splits": {}}
    source = HubSource.model_validate({**known, "expects": {"model_type": "bert"}})
    with pytest.raises(SourceError, match="expected model_type 'bert'"):
        fetch_stage.run("x", tmp_path / "raw" / "x", fetch=source, log=Log(tmp_path / "scratch"))
    nothing_left(tmp_path / "raw")


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def download(repository, *, revision, local_dir, allow_patterns):
        (local_dir / "config.json").write_text("{}")
        raise ConnectionError("reset by http://me:s3cret@proxy:8080/ " + "x" * 250 + " http://me:s3cret@" + "y" * 90)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SourceError, match="expected model a/b at main from the hub, found: reset by http://proxy") as found:
        fetch.fetch_model("a/b", "main", tmp_path / "raw" / "x", keep=Kept(tmp_path / "scratch"))
    assert "s3cret" not in str(found.value)
    nothing_left(tmp_path / "raw")


@pytest.mark.parametrize("url", ["http://me:s3cret@host.example/simple", "https://s3cret@host.example/simple"])
def test_what_pip_says_of_an_index_has_no_password(tmp_path, monkeypatch, url):
    said = subprocess.CompletedProcess(
        [], 1, "", f"WARNING: x\nERROR: HTTP error 401 while getting {url}/x.whl (from {url})\n"
    )
    monkeypatch.setattr("subprocess.run", lambda *_, **__: said)
    with pytest.raises(SourceError, match=r"found: ERROR: HTTP error 401 while getting \w+://host\.example/simple") as found:
        fetch.fetch_package("x==1.0", "0" * 64, {".": "x"}, tmp_path / "out", keep=Kept(tmp_path / "scratch"))
    assert "s3cret" not in str(found.value)


@pytest.mark.parametrize("with_rows", [False, True])
def test_a_data_set_with_a_script_is_refused_and_the_script_not_run(tmp_path, monkeypatch, with_rows):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "hostile"
    repository.mkdir()
    (repository / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    if with_rows:
        (repository / "train.csv").write_text("text\none\n")
    with pytest.raises(SourceError, match="expected dataset"):
        fetch.fetch_data_set(
            str(repository),
            "0" * 40,
            tmp_path / "raw" / "x",
            config=None,
            splits={"train": "train"},
            keep=Kept(tmp_path / "scratch"),
        )
    assert not (tmp_path / "ran").exists()
    nothing_left(tmp_path / "raw")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[1, 2]", b'"text"', b"null"])
def test_a_configuration_that_is_none_is_one_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"expected (to read|an object in) .*config\.json, found"):
        checks.check_model(tmp_path, {"model_type": "bert"})


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Cut, or with some bytes changed, or with a piece exchanged."""
    at = generator.randrange(len(data))
    way = generator.random()
    if way < 0.3:
        return data[:at]
    if way < 0.8:
        changed = bytearray(data)
        for _ in range(generator.choice([1, 2, 6])):
            changed[generator.randrange(len(data))] = generator.choice([0, 255, generator.randrange(256)])
        return bytes(changed)
    return data[:at] + generator.randbytes(generator.randrange(40)) + data[at + generator.randrange(1, 40) :]


def archive_of(kind: str, path: Path) -> bytes:
    if kind.startswith("zip"):
        method = {"zip": zipfile.ZIP_DEFLATED, "zip stored": zipfile.ZIP_STORED, "zip lzma": zipfile.ZIP_LZMA}[kind]
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content * 300)
    else:
        with tarfile.open(path, kind) as archive:
            for name, content in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(content) * 300
                archive.addfile(info, io.BytesIO(content * 300))
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "zip stored", "zip lzma", "w:", "w:gz", "w:xz", "w:bz2"])
def test_a_damaged_archive_is_one_error_and_leaves_nothing(tmp_path, kind):
    """A plain tar has no checksum of its content: then all files are there, of which the sha256 of the source speaks."""
    data = archive_of(kind, tmp_path / "archive")
    generator, found = random.Random(1), 0
    for i in range(250):
        (tmp_path / "archive").write_bytes(damaged(data, generator))
        try:
            archives.unpack(tmp_path / "archive", {".": "pkg"}, tmp_path / str(i) / "out")
        except SourceError:
            found += 1
            nothing_left(tmp_path / str(i))
    assert found >= 50


@pytest.mark.parametrize("kind", ["w:", "w:gz"])
def test_a_tar_whose_second_header_is_damaged_does_not_end_there(tmp_path, kind):
    data = archive_of("w:", tmp_path / "plain")
    second = data.index(b"pkg/data/sub/b.txt")
    with tarfile.open(tmp_path / "x.tar", kind) as archive:
        archive.fileobj.write(data[:second] + b"!!" + data[second + 2 :])
        archive.offset = len(data)
    with pytest.raises(SourceError, match=f"expected to unpack x.tar, found: no header, and no end, at byte {second}"):
        archives.unpack(tmp_path / "x.tar", {".": "pkg"}, tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pkg/a": b"A", "pkg/a/b": b"B"}, "expected to unpack x, found: (File exists|Not a directory)"),
        ({"pkg/" + "x" * 90 + "/" + "y" * 300: b"A"}, "File name too long"),
        ({}, r"expected member 'pkg' in x, found none; it holds e\.g\. \[\]"),
    ],
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_an_archive_that_cannot_be_written_out(tmp_path, make, files, says):
    make(tmp_path / "x", files)
    with pytest.raises(SourceError, match=says):
        archives.unpack(tmp_path / "x", {".": "pkg"}, tmp_path / "raw" / "out")
    nothing_left(tmp_path / "raw")


@pytest.mark.parametrize("name", ["a\0b.txt", "x" * 300, "/abs.txt"])
def test_a_name_that_cannot_be_written(tmp_path, name):
    with pytest.raises((SourceError, UnsafeArchive)):
        archives.unpack(make_zip(tmp_path / "x"), {name: "pkg/data.txt"}, tmp_path / "raw" / "out")
    nothing_left(tmp_path / "raw")


def test_a_locked_zip_is_one_error(tmp_path):
    data = bytearray(make_zip(tmp_path / "x").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # its entries say that they are encrypted
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + flags] |= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(SourceError, match="password required"):
        archives.unpack(tmp_path / "x", {".": "pkg"}, tmp_path / "out")


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_what_is_no_file_is_no_archive(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError):
        archives.unpack(tmp_path / name, {".": "pkg"}, tmp_path / "out")


def test_an_archive_that_says_it_holds_more_than_there_is_room_for(tmp_path, monkeypatch):
    """Before anything is written: 1 GB of zeros is 1 MB of zip."""
    make_zip(tmp_path / "x")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2}))
    with pytest.raises(SourceError, match=r"expected room for the 10 bytes of x at .*out, found 2: free some space"):
        archives.unpack(tmp_path / "x", {".": "pkg", "again": "pkg/data.txt"}, tmp_path / "out")
    archives.unpack(tmp_path / "x", {"a": "pkg/data.txt", "b": "pkg/data.txt"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"C", "b": b"C"}
