"""What is done to input that was whole: to bytes, to text, to documents of mappings and lists."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

WORDS = ("", "\0", " ", "\t", "~", "null", "nan", "1e400", "-1", "../../out", "/nowhere/x", "C:\\x", "🙂", "\ud800", "a\nb")
HUGE = 7 * 10**40 + 7  # stands for 5,000 digits, which Python itself refuses to print
EXTREMES: tuple[Any, ...] = (
    *WORDS,
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**30, HUGE),
    *(0.5, -0.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")),
    *([], {}, [[]], [None], {"a": {}}, {"": None}, ["a", "a"], "x" * 5000, ["x"] * 500),
)
PIECES = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b"{",
    b"[",
    b"&a [*a]",
    b"\xff\xff\xff\xff",
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def document(whole: Any, draw: Random, *, most: int = 3) -> Any:
    """A copy with up to `most` places changed: a value swapped, a key dropped, renamed or moved, a part put elsewhere."""
    changed = copy.deepcopy(whole)
    for _ in range(draw.randint(1, most)):
        places = list(_places(changed))
        if not places:
            return draw.choice(EXTREMES)
        holder, key = draw.choice(places)
        draw.choice((_swap, _swap, _drop, _rename, _graft, _twice))(holder, key, places, draw)
    return changed


def dumped(changed: Any) -> bytes:
    """A document as JSON, which is YAML too; half of a surrogate pair as its escape."""
    return json.dumps(changed).replace(str(HUGE), "7" * 5000).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything inside."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def _swap(holder: Any, key: Any, places: list, draw: Random) -> None:
    holder[key] = copy.deepcopy(draw.choice(EXTREMES))


def _drop(holder: Any, key: Any, places: list, draw: Random) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, places: list, draw: Random) -> None:
    if isinstance(holder, dict):
        holder[draw.choice((*WORDS, key[:-1], f"{key}x") if isinstance(key, str) else WORDS)] = holder.pop(key)


def _graft(holder: Any, key: Any, places: list, draw: Random) -> None:
    other, where = draw.choice(places)
    holder[key] = copy.deepcopy(other[where])


def _twice(holder: Any, key: Any, places: list, draw: Random) -> None:
    holder[key] = [holder[key], copy.deepcopy(holder[key])]


def data(whole: bytes, draw: Random, *, most: int = 4) -> bytes:
    """The bytes with up to `most` changes: bits, numbers, pieces put in, cut out, said twice, and where it ends."""
    changed = bytearray(whole)
    for _ in range(draw.randint(1, most)):
        at, size = draw.randint(0, len(changed)), draw.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = draw.randrange(7)
        if kind == 0 and changed:
            changed[at - 1] ^= 1 << draw.randrange(8)
        elif kind == 1:
            number = draw.choice(NUMBERS).to_bytes(4, draw.choice(("little", "big")))
            changed[at : at + 4] = number
        elif kind == 2:
            changed[at:at] = draw.choice(PIECES)
        elif kind == 3:
            del changed[at : at + size]
        elif kind == 4:
            changed[at:at] = changed[max(0, at - size) : at]
        elif kind == 5 and draw.random() < 0.3:
            del changed[at:]
        else:
            changed[at : at + size] = draw.randbytes(min(size, 64))
    return bytes(changed)


def text(whole: str, draw: Random, *, most: int = 4) -> bytes:
    """As UTF-8 with lines dropped, said twice and swapped, and words put in; now and then its bytes are damaged."""
    lines = whole.splitlines(keepends=True)
    for _ in range(draw.randint(1, most)):
        at, other = draw.randint(0, len(lines)), draw.randint(0, len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            del lines[at : at + 1]
        elif kind == 1:
            lines[other:other] = lines[at : at + draw.choice((1, 1, 5))]
        elif kind == 2 and lines:
            where = draw.randint(0, len(lines[at - 1]))
            lines[at - 1] = lines[at - 1][:where] + draw.choice(WORDS) + lines[at - 1][where:]
        elif kind == 3 and lines:
            lines[at - 1] = draw.choice(("  ", "\t", "- ", "? ", "! ", "& ", "* ", "%", "# ", "")) + lines[at - 1].lstrip(
                " "
            )
        elif kind == 4 and lines:
            head, colon, tail = lines[at - 1].partition(":")
            value = str(draw.choice(EXTREMES[:-2])) if draw.random() < 0.9 else "[" * draw.choice((10, 3000))
            lines[at - 1] = f"{head}{colon} {value}\n" if colon else tail
    raw = "".join(lines).encode("utf-8", "surrogatepass")
    return data(raw, draw) if draw.random() < 0.2 else raw
