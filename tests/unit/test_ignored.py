"""The md5 of a folder is DVC's own, whatever lies in it: DVC is asked in the same breath."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.ignore import DvcIgnoreFilter
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_objects.fs.local import localfs

from pipeline import hashing, ignored

FOLDERS = {
    "plain": ["a", "b/c", "b/d/e"],
    "git-cloned": [".git/HEAD", ".git/objects/ab/cd", "model.bin", "sub/.git", "sub/x", ".gitignore", ".gitattributes"],
    "mercurial": [".hg/store", ".hgignore", "x", "deep/.hg/y", "deep/z"],
    "its-own-dvc": [".dvc/config", "x", "deep/.dvc/config", "deep/y", "deep/deeper/z", "other/w"],
    "named": ["keep.txt", "drop.tmp", "b/drop.tmp", "b/keep.tmp", "cache/x", "b/cache/x", "cache-not/x", "top", "b/top"],
    "names": ["Ä ö.txt", "日/本.bin", ".hidden", "10", "9", "b-1", "b.1", "b/2", "#hash", "!bang", "a*b"],
    "line-ends": ["crlf.txt", "lf.txt"],
}
IGNORE = "# a comment\n*.tmp\n!keep.tmp\ncache/\n/data/named/top\n"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repo]:
    root = tmp_path_factory.mktemp("repo")
    made = Repo.init(str(root), no_scm=True)
    (root / ".dvcignore").write_text(IGNORE)
    for folder, names in FOLDERS.items():
        for name in names:
            path = root / "data" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"one\r\ntwo\r\n" if name.startswith("crlf") else name.encode())
    below = root / "data/below"
    for name in ("x.log", "deep/x.log", "deep/keep.log", "deep/y"):
        (below / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (below / "folder" / name).write_text(name)
    (below / ".dvcignore").write_text("*.log\n!/folder/deep/keep.log\n/folder/y\n")
    linked = root / "data/linked"
    linked.mkdir()
    (linked / "to-file").symlink_to(root / "data/plain/a")
    (linked / "to-folder").symlink_to(root / "data/plain/b")
    (linked / "no-files/deeper").mkdir(parents=True)
    (linked / "real").write_text("real")
    (root / "data/link").symlink_to(root / "data/git-cloned")
    yield made
    made.close()


def dvcs(repo: Repo, folder: Path) -> tuple[str, list[str]]:
    """DVC's md5 of a folder, and the names of the files that it counts."""
    _, _, tree = build(
        repo.cache.local, str(folder), localfs, "md5", ignore=DvcIgnoreFilter(localfs, repo.root_dir), dry_run=True
    )
    return tree.hash_info.value, sorted("/".join(key) for key, _, _ in tree)


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("git-cloned", [".gitattributes", ".gitignore", "model.bin", "sub/x"]),
        ("its-own-dvc", ["other/w", "x"]),
        ("named", ["b/keep.tmp", "b/top", "cache-not/x", "keep.txt"]),
        ("below/folder", ["deep/keep.log", "deep/y"]),
        ("linked", ["real", "to-file"]),
    ],
)
def test_what_is_counted(repo, name, counted):
    folder = Path(repo.root_dir) / "data" / name
    assert sorted(path.relative_to(folder).as_posix() for path in ignored.files(folder)) == counted


@pytest.mark.parametrize("name", [*FOLDERS, "below/folder", "linked", "link", "."])
def test_a_folders_md5_and_files_are_dvcs(repo, name):
    folder = Path(repo.root_dir) / "data" / name
    if name == ".":
        (folder / "below/.dvcignore").unlink()  # in a folder that is counted DVC takes none
    md5, names = dvcs(repo, folder)
    assert sorted(path.relative_to(folder).as_posix() for path in ignored.files(folder)) == names
    assert hashing.file_md5(folder) == md5
    assert len(names) >= 2


def test_it_is_the_same_from_inside_and_by_a_relative_name(repo, monkeypatch):
    monkeypatch.chdir(repo.root_dir)
    assert hashing.file_md5(Path("data/git-cloned")) == hashing.file_md5(Path(repo.root_dir) / "data/git-cloned")
    assert [path.as_posix() for path in ignored.files(Path("data/plain"))] == [f"data/plain/{n}" for n in FOLDERS["plain"]]


def test_outside_of_a_repository_dvc_counts_everything(repo, tmp_path):
    for name in (".git/HEAD", "x", "y.tmp"):
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(name)
    md5, names = dvcs(repo, tmp_path / "clone")
    assert names == [".git/HEAD", "x", "y.tmp"]
    assert hashing.file_md5(tmp_path / "clone") == md5
