"""Names that are no files, as what `pack`, `unpack` and `load` read and write: one error each, and nothing is touched."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import pruneonce
from pruneonce import command
from pruneonce.deployment import packing, protobuf, unpacking
from pruneonce.errors import PackError

LONG = "x" * 300  # a name ends at 255 bytes


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    stored = [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")]
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], stored)), path)
    return path


@pytest.fixture
def odd(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """kind -> a name in an otherwise empty folder, `odd`, where something of that kind is."""
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "file").write_text("of somebody")
    for name, target in {"link": "file", "dangling": "nothing", "loop": "loop", "device": "/dev/full"}.items():
        (folder / name).symlink_to(target)
    monkeypatch.chdir(folder)  # a socket's name may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    kinds = {"empty": Path(), "dots": Path(".."), "root": Path("/"), "long": Path(LONG), "NUL": Path("a\0b")}
    return lambda kind: kinds.get(kind, Path(kind))


def inventory(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mode) for path in folder.rglob("*"))


READERS = {
    "pack": lambda path, out: packing.pack(path, out),
    "size": lambda path, out: packing.packed_bytes(path),
    "unpack": lambda path, out: unpacking.unpack(path, out),
    "load": lambda path, out: pruneonce.load(path),
    "load onnx": lambda path, out: pruneonce.load(
        str(path.with_name(f"{path.name}.onnx")) if path.name.strip(".") else path
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "found a folder"),
        ("empty", "found a folder"),
        ("dots", "found a folder"),
        ("root", "found a folder"),
        ("pipe", "found a device or a pipe"),
        ("socket", "found a device or a pipe"),
        ("device", "found a device or a pipe"),  # one that never ends
        ("nothing", "No such file"),
        ("dangling", "No such file"),
        ("loop", "found none: Too many levels of symbolic links"),
        ("long", "found none: File name too long"),
        ("NUL", "found none: embedded null byte"),
    ],
)
def test_what_is_no_file_is_not_read(odd, tmp_path, reader, kind, says):
    path = odd(kind)
    if reader == "load onnx" and path.name in os.listdir():
        Path(f"{path.name}.onnx").symlink_to(path.name)
    before = inventory(tmp_path)
    with pytest.raises(PackError, match=rf"expected a file at .*{re.escape(says)}") as found:
        READERS[reader](path, tmp_path / "out")
    assert len(str(found.value)) < 600
    assert inventory(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "found a folder there"),
        ("empty", "found a folder there"),
        ("dots", "found a folder there"),
        ("root", "found a folder there"),
        ("pipe", "found a device or a pipe there"),
        ("socket", "found a device or a pipe there"),
        ("device", "found a link there"),
        ("link", "found a link there"),
        ("dangling", "found a link there"),
        ("loop", "found a link there"),
        ("long", "File name too long"),
        ("NUL", "null byte"),
    ],
)
@pytest.mark.parametrize("way", [packing.pack, unpacking.unpack])
def test_what_is_no_file_is_not_written(model, odd, tmp_path, way, kind, says):
    """A link neither: `/dev/stdout` is one, and DVC's into its cache are."""
    source = model
    if way is unpacking.unpack:
        source = tmp_path / "model.packed"
        packing.pack(model, source)
    before = inventory(tmp_path)
    with pytest.raises(PackError, match=rf"expected to write .*{re.escape(says)}"):
        way(source, odd(kind))
    assert inventory(tmp_path) == before
    assert Path("file").read_text() == "of somebody"


def test_a_device_is_not_replaced(model, tmp_path):
    device = tmp_path / "full"
    try:
        os.mknod(device, 0o020666, os.makedev(1, 7))
    except PermissionError:
        pytest.skip("no right to make a device")
    with pytest.raises(PackError, match="found a device or a pipe there"):
        packing.pack(model, device)
    assert device.is_char_device()


def test_a_file_is_not_written_over_itself(model, tmp_path):
    """By the same name, another way to say it, or a second name."""
    os.link(model, tmp_path / "second.onnx")
    content = model.read_bytes()
    for name in (model, tmp_path / "." / ".." / tmp_path.name / model.name, tmp_path / "second.onnx"):
        with pytest.raises(PackError, match="expected to write another file than is read"):
            packing.pack(model, name)
    assert model.read_bytes() == content


def test_a_link_is_read_and_a_file_is_replaced(model, tmp_path):
    (tmp_path / "link.onnx").symlink_to(model.name)
    (tmp_path / "out").write_text("of yesterday")
    packing.pack(tmp_path / "link.onnx", tmp_path / "out")
    assert unpacking.read(tmp_path / "out") == model.read_bytes()


def test_the_name_of_the_part_is_nobodys(model, tmp_path):
    """Of a long name too; what lies beside is left alone."""
    (tmp_path / "out.part").write_text("of somebody")
    packing.pack(model, tmp_path / "out")
    packing.pack(model, tmp_path / LONG[:255])
    assert (tmp_path / "out.part").read_text() == "of somebody"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["model.onnx", "out", "out.part", LONG[:255]])


def test_what_git_lfs_keeps_in_place_of_a_file_is_told(tmp_path):
    for name in ("model.onnx", "model.packed"):
        (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
        for reader in (pruneonce.load, packing.packed_bytes, unpacking.read):
            with pytest.raises(PackError, match=r"expected the file itself at .*found what Git LFS .* git lfs pull"):
                reader(tmp_path / name)


def external(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="weights")
    (path.parent / "weights").unlink()


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "text": lambda path: path.write_text("hello\n"),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "name is no UTF-8": lambda path: path.write_bytes(path.read_bytes().replace(b"Softmax", b"Softm\xff\xfe")),
    "unknown operator": lambda path: path.write_bytes(path.read_bytes().replace(b"Softmax", b"Sortmax")),
    "packed": lambda path: packing.pack(path, path.with_suffix(".packed")) or path.with_suffix(".packed").replace(path),
    "external data": external,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_load_says_what_is_wrong_with_a_file(dense_onnx, tmp_path, damage, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(dense_onnx.path.read_bytes())
    DAMAGES[damage](path)
    capfd.readouterr()
    expected = r"(a model that ONNX Runtime \d+.* loads, found: |an ONNX file, found |the weights of ).*Get the file again"
    with pytest.raises(PackError, match=f"expected {expected}"):
        pruneonce.load(path)
    assert capfd.readouterr() == ("", "")


def test_load_says_what_is_wrong_with_a_packed_file(dense_onnx, tmp_path):
    path = tmp_path / "model.packed"
    path.write_bytes(b"something else")
    with pytest.raises(PackError, match="`pruneonce pack` wrote"):
        pruneonce.load(path)
    packing.pack(dense_onnx.path, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackError, match="damaged or cut short"):
        pruneonce.load(path)


@pytest.mark.parametrize("word", ["pack", "unpack"])
@pytest.mark.parametrize("name", [".", "..", "/", "", "folder", "pipe", LONG, f"{LONG}.onnx", "a\0b", "no.onnx"])
def test_a_mistaken_name_on_the_command_line_is_one_line(odd, tmp_path, monkeypatch, word, name):
    before = inventory(tmp_path)
    monkeypatch.setattr("sys.argv", ["pruneonce", word, name])
    with pytest.raises(SystemExit, match=r"^PackError: expected a file at [^\n]*$"):
        command.main()
    assert inventory(tmp_path) == before


def field(number: int, value: bytes) -> bytes:
    """A field of a protobuf message."""
    return bytes([number << 3 | 2, len(value) & 0x7F | 0x80, len(value) >> 7]) + value


def test_a_tensor_without_a_type_is_packed_by_bytes(tmp_path):
    """Not sound, but protobuf: its type is read as unknown."""
    tensor = field(protobuf.RAW_DATA, bytes(range(200)) * 20)
    (tmp_path / "in").write_bytes(field(protobuf.GRAPH, field(protobuf.INITIALIZER, tensor)))
    packing.pack(tmp_path / "in", tmp_path / "out")
    assert unpacking.read(tmp_path / "out") == (tmp_path / "in").read_bytes()


def test_a_file_too_large_for_protobuf_is_not_packed(tmp_path):
    with (tmp_path / "in").open("wb") as file:
        file.truncate(protobuf.LIMIT + 1)  # takes no room
    with pytest.raises(PackError, match="expected an ONNX file, found 2147483649 bytes"):
        packing.pack(tmp_path / "in", tmp_path / "out")
