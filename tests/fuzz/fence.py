"""Nothing is written outside of a folder by this process: what tries is stopped before it does.

A command that is handed `/etc/passwd` as the file to write would write it, and as root put a file where a device was. What
Python opens, moves, makes and removes passes its audit hooks first; they cannot be taken out again, so this is for processes
that do nothing else.
"""

import os
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event -> (place of a path, place of the folder's number it is relative to, whether a link is meant itself).
EVENTS: dict[str, tuple[tuple[int, int | None, bool], ...]] = {
    "os.rename": ((0, 2, True), (1, 3, True)),
    "os.link": ((1, 3, True),),
    "os.symlink": ((1, 2, True),),
    "os.remove": ((0, 1, True),),
    "os.rmdir": ((0, 1, True),),
    "os.mkdir": ((0, 2, False),),
    "os.truncate": ((0, None, False),),
    "os.chmod": ((0, 2, False),),
    "os.chown": ((0, 3, False),),
}


class Outside(BaseException):
    """A write outside of the fence. No Exception: nobody catches it."""


def build(folder: Path) -> None:
    """From now on this process writes below `folder` alone, or into the void."""
    root = os.path.realpath(folder)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and args[2] & WRITING:
            _check(root, _place(args[0], None, False))
        for path, number, itself in EVENTS.get(event, ()):
            _check(root, _place(args[path], None if number is None else args[number], itself))

    sys.dont_write_bytecode = True
    sys.addaudithook(watch)


def _place(path: Any, number: int | None, itself: bool) -> str:
    """Where a write would go, links followed; empty for what is open already."""
    if isinstance(path, int):
        return ""
    name = os.fsdecode(path)
    if number is not None and number >= 0:
        name = os.path.join(os.readlink(f"/proc/self/fd/{number}"), name)
    if not itself:
        return os.path.realpath(name)
    head, tail = os.path.split(name.rstrip("/"))
    return os.path.join(os.path.realpath(head or "."), tail)


def _check(root: str, place: str) -> None:
    if place and place not in (root, os.devnull) and not place.startswith(root + os.sep):
        raise Outside(f"a write to {place}")
