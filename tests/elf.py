"""What a shared library asks of the system that loads it, out of its ELF tables (64 bits, little-endian)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MACHINES = {62: "x86_64", 183: "aarch64"}
DYNAMIC, NOTE, SYMBOLS, VERSIONS = 6, 7, 11, 0x6FFFFFFE  # types of sections
NEEDED = 1  # tag of an entry of the dynamic section


@dataclass(frozen=True)
class Section:
    data: bytes
    names: bytes  # of the section that it is linked to

    def name(self, at: int) -> str:
        return self.names[at : self.names.index(b"\0", at)].decode()


@dataclass(frozen=True)
class Library:
    machine: str
    needed: set[str]  # libraries
    exported: set[str]
    imported: set[str]
    versions: set[str]  # of what is imported, such as GLIBC_2.14
    notes: int  # a build id is one

    @property
    def glibc(self) -> tuple[int, ...]:
        """The oldest glibc that has what is imported."""
        return max(tuple(map(int, name[6:].split("."))) for name in self.versions if name.startswith("GLIBC_"))


def read(path: Path) -> Library:
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (machine,) = struct.unpack_from("<H", data, 18)
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    headers = [struct.unpack_from("<4xI16xQQI", data, start + index * size) for index in range(count)]
    contents = [data[offset : offset + length] for _, offset, length, _ in headers]

    def sections(wanted: int) -> Iterator[Section]:
        for (kind, _, _, link), content in zip(headers, contents, strict=True):
            if kind == wanted:
                yield Section(content, contents[link])

    (dynamic,), (symbols,) = sections(DYNAMIC), sections(SYMBOLS)
    entries = [(symbols.name(at), defined) for at, defined in struct.iter_unpack("<I2xH16x", symbols.data) if at]
    return Library(
        machine=MACHINES[machine],
        needed={dynamic.name(value) for tag, value in struct.iter_unpack("<qQ", dynamic.data) if tag == NEEDED},
        exported={name for name, defined in entries if defined},
        imported={name for name, defined in entries if not defined},
        versions={name for section in sections(VERSIONS) for name in needed_versions(section)},
        notes=len(list(sections(NOTE))),
    )


def needed_versions(section: Section) -> Iterator[str]:
    """Of every library that is needed, a chain of versions."""
    at, more = 0, True
    while more:
        count, first, following = struct.unpack_from("<2xH4xII", section.data, at)
        below = at + first
        for _ in range(count):
            name, step = struct.unpack_from("<8xII", section.data, below)
            yield section.name(name)
            below += step
        at, more = at + following, bool(following)
