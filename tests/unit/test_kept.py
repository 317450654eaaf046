"""A part that was finished outlives a kill; one that was not, or that was changed, is made again."""

import shutil

import pytest

from pipeline import kept as module
from pipeline.kept import Kept


class Maker:
    """Writes a file, or a folder, and counts how often."""

    def __init__(self, folder=False):
        self.folder, self.calls = folder, 0

    def __call__(self, path):
        self.calls += 1
        if self.folder:
            (path / "sub").mkdir(parents=True, exist_ok=True)
            (path / "sub" / "model").write_bytes(b"weights")
            (path / "config").write_bytes(b"{}")
        else:
            path.write_bytes(b"weights")


def content(path):
    return [file.read_bytes() for file in module._files(path)]


@pytest.mark.parametrize("folder", [False, True])
def test_a_part_is_made_once(tmp_path, capsys, folder):
    make = Maker(folder)
    paths = [Kept(tmp_path)("one", make) for _ in range(3)]
    assert (make.calls, len(set(paths))) == (1, 1)
    assert content(paths[0]) == ([b"{}", b"weights"] if folder else [b"weights"])
    assert capsys.readouterr().err.count(f"left 1 finished parts in {paths[0].parent}: they are not made again.") == 2


def change(path):
    (path / "config" if path.is_dir() else path).write_bytes(b"[]")


def cut(path):
    (path / "config" if path.is_dir() else path).write_bytes(b"")


def without_checksum(path):
    path.with_name(f"{path.name}.sha256").unlink()


def without_a_file(path):
    (path / "config").unlink() if path.is_dir() else change(path)


def with_more(path):
    (path / "more").touch() if path.is_dir() else change(path)


def with_another_name(path):
    (path / "config").rename(path / "other") if path.is_dir() else change(path)


@pytest.mark.parametrize("damage", [change, cut, without_checksum, without_a_file, with_more, with_another_name])
@pytest.mark.parametrize("folder", [False, True])
def test_a_part_that_was_changed_is_made_again(tmp_path, capsys, folder, damage):
    make, kept = Maker(folder), Kept(tmp_path)
    path = kept("one", make)
    before = content(path)
    damage(path)
    assert content(kept("one", make)) == before
    assert make.calls == 2
    assert f"expected {path} as it was made, found it changed: it is made again." in capsys.readouterr().err


@pytest.mark.parametrize("step", ["make", "_digest", "rename"])
def test_a_part_that_a_kill_cut_short_is_not_finished(tmp_path, monkeypatch, step):
    """Killed while it is written, before its checksum, and between the checksum and the name."""

    def killed(*_):
        raise KeyboardInterrupt

    def half(path):
        path.write_bytes(b"wei")
        if step == "make":
            raise KeyboardInterrupt

    kept = Kept(tmp_path)
    with monkeypatch.context() as patched:
        if step != "make":
            patched.setattr(*((module, step) if step == "_digest" else (module.Path, step)), killed)
        with pytest.raises(KeyboardInterrupt):
            kept("one", half)
    make = Maker()
    assert Kept(tmp_path)("one", make).read_bytes() == b"weights"
    assert make.calls == 1


def test_what_was_written_before_a_kill_is_there_for_the_next_try(tmp_path):
    kept = Kept(tmp_path)

    def half(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept("one", half)
    assert kept("one", lambda path: path.write_bytes(path.read_bytes() + b" and half")).read_bytes() == b"half and half"


def test_parts_of_another_machine_or_of_other_versions_are_not_mixed_in(tmp_path, monkeypatch):
    one, make = Kept(tmp_path), Maker()
    one("x", make)
    assert Kept(tmp_path, "kernels").folder != Kept(tmp_path, "other kernels").folder != one.folder
    monkeypatch.setattr(module.machine, "processor", lambda: "another")
    other = Kept(tmp_path)
    other("x", make)
    assert (make.calls, other.folder != one.folder) == (2, True)
    shutil.rmtree(tmp_path)
