"""A finished file or folder counts only as long as it is what was written."""

import pytest

from study import finished


def one_file(part):
    part.write_text("0.5")


def a_folder(part):
    part.mkdir()
    (part / "config.json").write_text("{}")
    (part / "model.safetensors").write_bytes(bytes(100))


def overwrite(path):
    path.write_bytes(path.read_bytes()[:-1] + b"7")


DAMAGES = {
    "changed": overwrite,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("make", [one_file, a_folder])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("changed", ["itself", "its checksum"])
def test_what_was_finished_is_believed_as_long_as_it_is_what_was_written(tmp_path, capsys, make, damage, changed):
    path = tmp_path / "0.002-1"
    assert not finished.is_finished(path)
    finished.finish(path, make)
    assert finished.is_finished(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.002-1", "0.002-1.sha256"]
    file = path / "model.safetensors" if path.is_dir() else path
    DAMAGES[damage](file if changed == "itself" else tmp_path / "0.002-1.sha256")
    assert not finished.is_finished(path)
    assert not path.exists()
    assert (
        capsys.readouterr().err == f"expected {path} as it was written, found it changed. It is discarded, and made again.\n"
    )
    finished.finish(path, make)
    assert finished.is_finished(path)


def test_what_a_kill_left_before_its_name_is_not_finished(tmp_path):
    one_file(tmp_path / "done.finish.part")
    (tmp_path / "done.sha256").write_text("of what was to be")
    assert not finished.is_finished(tmp_path / "done")


@pytest.mark.parametrize("change", [lambda f: (f / "config.json").unlink(), lambda f: (f / "more").write_text("x")])
def test_a_folder_that_lost_or_got_a_file_is_not_believed(tmp_path, change):
    finished.finish(tmp_path / "model", a_folder)
    change(tmp_path / "model")
    assert not finished.is_finished(tmp_path / "model")
