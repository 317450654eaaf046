"""Wheels, zips and tars of every kind, damaged and hostile, and what is taken out of them."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from random import Random

from pruneonce.sources.archives import unpack
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS = ("out",)
SECONDS = 10.0
SHARE = 20

PACKERS = {"": bytes, "gz": lambda raw: gzip.compress(raw, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}
NAMES = (
    "p/train.csv",
    "p/test.csv",
    "p/deep/er/a.txt",
    "q.txt",
    "../up.txt",
    "/nowhere/y",
    "p/../../up",
    "p",
    "p/",
    "",
    ".",
    "p//x",
    "x" * 300,
    "a\0b",
    "ü.txt",
    "C:\\x",
    "\ud800",
)
MEMBERS = (
    {"train.csv": "p/train.csv"},
    {".": "p"},
    {"all": "p"},
    {".": "."},
    {"a": "q.txt", "b": "q.txt"},
    {"../x": "q.txt"},
    {"/x": "q.txt"},
    {"x": ""},
    {"": "p"},
    {"a": "p", "a/train.csv": "p/test.csv"},
    {"x/y": "q.txt", "x": "q.txt"},
    {"\0": "q.txt"},
    {"y" * 300: "q.txt"},
)


def make(draw: Random) -> Files:
    named = [draw.choice(NAMES[:4] if draw.random() < 0.7 else NAMES) for _ in range(draw.randint(1, 6))]
    if draw.random() < 0.4:
        content, ending = _zip(named, draw), draw.choice((".zip", ".whl"))
    else:
        mode = draw.choice(list(PACKERS))
        content, ending = _tar(named, mode, draw), ".tar" + (f".{mode}" if mode else "")
    if draw.random() < 0.6:
        content = damage.data(content, draw)
    return {f"archive{ending}": content, "members.json": json.dumps(draw.choice(MEMBERS)).encode()}


def _zip(named: list[str], draw: Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name in named:
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("\ud800", "?") or "x"
            info.compress_type = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            info.external_attr = draw.choice((0o100644, 0o120777, 0o010644, 0)) << 16
            info.flag_bits |= draw.choice((0, 0, 0, 1))
            try:
                made.NameToInfo.pop(info.filename, None)  # a name may be there twice, without a warning
                made.writestr(info, draw.choice((b"", b"rows\n" * 20, b"../q.txt", b"\0" * 5000)))
            except (ValueError, RuntimeError):
                continue
    return out.getvalue()


def _tar(named: list[str], mode: str, draw: Random) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as made:
        for name in named:
            info = tarfile.TarInfo(name.replace("\ud800", "?"))
            kinds = (tarfile.REGTYPE,) * 5 + (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.FIFOTYPE,
                tarfile.CHRTYPE,
                tarfile.DIRTYPE,
                tarfile.GNUTYPE_SPARSE,
            )
            info.type, info.linkname = draw.choice(kinds), draw.choice(NAMES[:6])
            raw = draw.choice((b"", b"rows\n" * 20, b"\0" * 5000)) if info.type == tarfile.REGTYPE else b""
            info.size, info.mode = len(raw), draw.choice((0o644, 0o777, 0))
            try:
                made.addfile(info, io.BytesIO(raw))
            except (ValueError, OverflowError):
                continue
    return PACKERS[mode](out.getvalue())


def run(folder: Path) -> None:
    (archive,) = Path().glob("archive.*")
    unpack(archive, json.loads(Path("members.json").read_text()), folder / "out")
