"""Sources: nothing is written that was not asked for, pinned and safe."""

import hashlib
import io
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sources import HubSource
from pruneonce.errors import ChecksumMismatch, SourceError, UnsafeArchive
from pruneonce.sources import archives, checks, fetch, local
from stages import fetch as fetch_stage

FILES = {"pkg/data/a.txt": b"A", "pkg/data/sub/b.txt": b"B", "pkg/data.txt": b"C", "pkg/__init__.py": b"evil()"}


def make_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files=FILES, links=()):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=[make_zip, make_tar], ids=["zip", "tar"])
def make(request):
    return request.param


def test_members_are_files_and_folders_under_their_new_names(tmp_path, make):
    archive = make(tmp_path / "x.whl")
    archives.unpack(archive, {"train.txt": "pkg/data.txt", "all": "pkg/data"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"train.txt": b"C", "all/a.txt": b"A", "all/sub/b.txt": b"B"}


def test_a_folder_can_become_the_sources_folder(tmp_path, make):
    archives.unpack(make(tmp_path / "x.whl"), {".": "pkg/data/"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"A", "sub/b.txt": b"B"}


def test_a_file_in_the_sources_folder_keeps_its_name(tmp_path, make):
    """The source is a folder whatever it holds, as `fetch` and all that reads it take it."""
    archives.unpack(make(tmp_path / "x.whl"), {".": "pkg/data/a.txt"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"A"}
    (tmp_path / "train.txt").write_bytes(b"A")
    local.copy_local(tmp_path / "train.txt", {".": "."}, None, tmp_path / "one")
    local.copy_local(tmp_path, {".": "train.txt"}, None, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == {"train.txt": b"A"}


@pytest.mark.parametrize("member", ["pkg/other.txt", "pkg/dat", "pkg/missing/folder"])
def test_a_missing_member_names_what_is_there(tmp_path, make, member):
    with pytest.raises(SourceError, match=r"it holds e\.g\. \['pkg/data/a\.txt'"):
        archives.unpack(make(tmp_path / "x.whl"), {"a": "pkg/data.txt", "b": member}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pkg/../../evil.txt", "pkg//etc/evil.txt", "pkg/a/../../../evil.txt"])
def test_a_member_that_escapes_is_refused_before_anything_is_written(tmp_path, make, name):
    archive = make(tmp_path / "x.whl", {"pkg/good.txt": b"good", name: b"evil"})
    with pytest.raises(UnsafeArchive, match="outside of it"):
        archives.unpack(archive, {".": "pkg"}, tmp_path / "out")
    assert set(tree(tmp_path)) == {"x.whl"}


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt"])
def test_a_name_that_escapes_is_refused(tmp_path, make, name):
    with pytest.raises(UnsafeArchive):
        archives.unpack(make(tmp_path / "x.whl"), {name: "pkg/data.txt"}, tmp_path / "out")
    assert set(tree(tmp_path)) == {"x.whl"}


def test_links_in_a_tar_are_neither_made_nor_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    links = [
        ("pkg/soft", tarfile.SYMTYPE, str(tmp_path)),
        ("pkg/hard", tarfile.LNKTYPE, "pkg/a.txt"),
        ("pkg/device", tarfile.CHRTYPE, ""),
    ]
    archive = make_tar(tmp_path / "x.tar.gz", {"pkg/a.txt": b"A", "pkg/soft/evil.txt": b"evil"}, links)
    archives.unpack(archive, {".": "pkg"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"A", "soft/evil.txt": b"evil"}
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert not (tmp_path / "evil.txt").exists()


def test_links_in_a_zip_are_left_out(tmp_path):
    with zipfile.ZipFile(make_zip(tmp_path / "x.zip"), "a") as archive:
        info = zipfile.ZipInfo("pkg/data/link.txt")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    archives.unpack(tmp_path / "x.zip", {".": "pkg/data"}, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"A", "sub/b.txt": b"B"}


def test_what_is_no_archive_is_an_error(tmp_path):
    (tmp_path / "x.whl").write_text("no archive")
    with pytest.raises(SourceError, match="expected a wheel, zip or tar file"):
        archives.unpack(tmp_path / "x.whl", {".": "pkg"}, tmp_path / "out")


def test_verify(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    checks.verify(tmp_path / "x", hashlib.sha256(b"content").hexdigest())
    with pytest.raises(ChecksumMismatch, match=hashlib.sha256(b"content").hexdigest()):
        checks.verify(tmp_path / "x", "0" * 64)
    with pytest.raises(SourceError, match="found a folder"):
        checks.verify(tmp_path, "0" * 64)


def test_a_file_may_be_wanted_under_two_names(tmp_path):
    members = {"train.txt": "pkg/data/a.txt", "model": "pkg/data", "copy.txt": "pkg/data/a.txt"}
    archives.unpack(make_zip(tmp_path / "x.zip"), members, tmp_path / "out")
    assert tree(tmp_path / "out") == {"train.txt": b"A", "model/a.txt": b"A", "model/sub/b.txt": b"B", "copy.txt": b"A"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder with one package."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "pruneonce_fixture-1.0.dist-info"
    files = {
        "pkg/data/a.txt": b"A",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: pruneonce-fixture\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    wheel = make_zip(folder / "pruneonce_fixture-1.0-py3-none-any.whl", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_package_is_downloaded_verified_and_unpacked(index, tmp_path):
    fetch.fetch_package(
        "pruneonce-fixture==1.0", index, {"t.txt": "pkg/data/a.txt"}, tmp_path / "out", keep=Kept(tmp_path / "scratch")
    )
    assert tree(tmp_path / "out") == {"t.txt": b"A"}


def test_a_checksum_that_differs_leaves_nothing_unpacked(index, tmp_path):
    with pytest.raises(ChecksumMismatch, match="Nothing was unpacked"):
        fetch.fetch_package(
            "pruneonce-fixture==1.0",
            "0" * 64,
            {"t.txt": "pkg/data/a.txt"},
            tmp_path / "out",
            keep=Kept(tmp_path / "scratch"),
        )
    assert not (tmp_path / "out").exists()


def test_nothing_of_a_source_package_runs_before_its_checksum_holds(tmp_path, monkeypatch):
    project = "pruneonce-hostile-1.0"
    setup = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    with tarfile.open(tmp_path / f"{project}.tar.gz", "w:gz") as archive:
        for name, content in {"setup.py": setup, "PKG-INFO": "Metadata-Version: 1.0\nName: pruneonce-hostile\n"}.items():
            info = tarfile.TarInfo(f"{project}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ChecksumMismatch, match=r"for pruneonce-hostile==1\.0, found [0-9a-f]{64}"):
        fetch.fetch_package(
            "pruneonce-hostile==1.0", "0" * 64, {"t": "setup.py"}, tmp_path / "out", keep=Kept(tmp_path / "scratch")
        )
    assert not (tmp_path / "ran").exists()


def test_a_package_that_no_index_has_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match=r"expected no-such-package-here==0\.0\.1 from the package index"):
        fetch.fetch_package(
            "no-such-package-here==0.0.1", "0" * 64, {".": "x"}, tmp_path / "out", keep=Kept(tmp_path / "scratch")
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub_dataset(tmp_path, monkeypatch):
    """A data set as the hub stores one, in a folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repository").mkdir()
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        pq.write_table(pa.table({"text": texts}), tmp_path / "repository" / f"{split}-00000-of-00001.parquet")
    return str(tmp_path / "repository")


def test_a_hub_data_set_becomes_parquet_under_our_names(hub_dataset, tmp_path):
    splits = {"train": "train", "validation": "test"}
    fetch.fetch_data_set(
        hub_dataset, "0" * 40, tmp_path / "out", config=None, splits=splits, keep=Kept(tmp_path / "scratch")
    )
    found = {p.name: pq.read_table(p).to_pydict() for p in (tmp_path / "out").iterdir()}
    assert found == {"train.parquet": {"text": ["one", "two"]}, "validation.parquet": {"text": ["three"]}}


def test_a_split_that_the_hub_does_not_have_is_an_error(hub_dataset, tmp_path):
    with pytest.raises(SourceError, match="expected dataset"):
        fetch.fetch_data_set(
            hub_dataset, "0" * 40, tmp_path / "out", config=None, splits={"train": "dev"}, keep=Kept(tmp_path / "scratch")
        )


def test_a_hub_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
    """tests/conftest.py sets HF_HUB_OFFLINE=1."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    repository, revision, out = "nobody/nothing", "0" * 40, tmp_path / "out"
    with pytest.raises(SourceError, match=f"expected model nobody/nothing at {revision} from the hub"):
        fetch.fetch_model(repository, revision, out, keep=Kept(tmp_path / "scratch"))
    with pytest.raises(SourceError, match=f"expected dataset nobody/nothing at {revision} from the hub"):
        fetch.fetch_data_set(
            repository, revision, out, config=None, splits={"train": "train"}, keep=Kept(tmp_path / "scratch")
        )


def test_what_arrives_from_the_hub_is_what_was_expected(hub_dataset, tmp_path):
    out = tmp_path / "out"
    fetch.fetch_data_set(hub_dataset, "0" * 40, out, config=None, splits={"train": "train"}, keep=Kept(tmp_path / "scratch"))
    checks.check_splits(out, ["text"], {"train": 2})
    for columns, rows, message in [
        (["text", "label"], {"train": 2}, r"expected columns \['text', 'label'\] and 2 rows in .*, found \['text'\] and 2"),
        (["text"], {"train": 3}, r"and 3 rows in .*train\.parquet, found \['text'\] and 2"),
        (["text"], {"train": 2, "test": 1}, r"expected .*test\.parquet, found \['train\.parquet'\]"),
    ]:
        with pytest.raises(SourceError, match=message):
            checks.check_splits(out, columns, rows)


def test_fetch_refuses_what_is_not_expected(hub_dataset, tmp_path):
    """The stage, with the source as params.yaml has it."""
    known = {
        "repository": hub_dataset,
        "kind": "dataset",
        "revision": "0" * 40,
        "config": None,
        "splits": {"train": "train"},
    }
    for number, rows in enumerate([2, 3]):
        expects = {"columns": ["text"], "rows": {"train": rows}, "bytes": 6}
        source = HubSource.model_validate({**known, "expects": expects})
        if rows == 2:
            assert fetch_stage.run("x", tmp_path / str(number), fetch=source, log=Log(tmp_path / "scratch"))["files"] == 1
        else:
            with pytest.raises(SourceError, match="and 3 rows"):
                fetch_stage.run("x", tmp_path / str(number), fetch=source, log=Log(tmp_path / "scratch"))
    unknown = HubSource.model_validate({**known, "expects": None})
    assert fetch_stage.run("x", tmp_path / "unknown", fetch=unknown, log=Log(tmp_path / "scratch"))["files"] == 1


def test_the_first_fact_of_a_model_that_differs_is_named(tmp_path, tiny_folder):
    checks.check_model(tiny_folder, {"model_type": "bert", "hidden_size": 48})
    with pytest.raises(SourceError, match=r"expected hidden_size 33 in .*config\.json, found 48\."):
        checks.check_model(tiny_folder, {"model_type": "bert", "hidden_size": 33, "num_hidden_layers": 99})
    with pytest.raises(SourceError, match=r"expected n_layers 6 in .*, found nothing"):
        checks.check_model(tiny_folder, {"n_layers": 6})
    with pytest.raises(SourceError, match=r"expected model_type 'bert' in .*config\.json, found nothing"):
        checks.check_model(tmp_path, {"model_type": "bert"})


def test_a_local_file_or_folder_is_copied(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_bytes(b"A")
    (tmp_path / "in" / "sub" / "b.txt").write_bytes(b"B")
    local.copy_local(tmp_path / "in", {"x.txt": "a.txt", "y": "sub"}, None, tmp_path / "one")
    local.copy_local(tmp_path / "in", {".": "."}, None, tmp_path / "two")
    pinned = hashlib.sha256(b"A").hexdigest()
    local.copy_local(tmp_path / "in" / "a.txt", {"train.txt": "."}, pinned, tmp_path / "three")
    assert tree(tmp_path / "one") == {"x.txt": b"A", "y/b.txt": b"B"}
    assert tree(tmp_path / "two") == {"a.txt": b"A", "sub/b.txt": b"B"}
    assert tree(tmp_path / "three") == {"train.txt": b"A"}


def test_a_local_source_is_verified_before_it_is_copied(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A")
    with pytest.raises(ChecksumMismatch):
        local.copy_local(tmp_path / "a.txt", {"b.txt": "."}, "0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_local_source_that_is_not_there_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A")
    with pytest.raises(SourceError, match="expected a file or folder at"):
        local.copy_local(tmp_path / "b.txt", {"b.txt": "."}, None, tmp_path / "out")
    with pytest.raises(SourceError, match=r"expected b\.txt in .*found \['a\.txt'"):
        local.copy_local(tmp_path, {"x": "b.txt"}, None, tmp_path / "out")
    with pytest.raises(SourceError, match=r"expected b\.txt in .*a\.txt, found a file"):
        local.copy_local(tmp_path / "a.txt", {"x": "b.txt"}, None, tmp_path / "out")


def test_a_local_source_writes_into_its_folder_only(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A")
    with pytest.raises(UnsafeArchive):
        local.copy_local(tmp_path / "a.txt", {"../b.txt": "."}, None, tmp_path / "out")
    assert not (tmp_path / "b.txt").exists()
