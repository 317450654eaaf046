"""What a check finds, how checks are run, and what is printed of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pruneonce.errors import plain

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """about: what was looked at, in a word or two. level: of OK, NOTE, PROBLEM. advice: what to do; empty if nothing is."""

    about: str
    level: str
    found: str
    advice: str = ""


Check = Callable[[], Iterable[Finding]]


def run(checks: Sequence[Check]) -> list[Finding]:
    """What all checks find, in their order. They run side by side: some wait for a server."""
    with ThreadPoolExecutor(len(checks)) as threads:
        return [finding for found in threads.map(_guarded, checks) for finding in found]


def _guarded(check: Check) -> list[Finding]:
    """What a check finds. A check that fails is a finding too."""
    try:
        return list(check())
    except Exception as error:  # whatever this machine has that the check did not expect
        name = f"{check.__module__}.{check.__name__}"
        said = f"the check {name} failed: {type(error).__name__}"  # its message may hold a part of a password
        return [Finding("doctor", NOTE, said, "Tell us of it.")]


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """One line for each finding, and one for their number."""
    width = max(len(finding.about) for finding in found)
    for finding in found:
        said = plain(finding.found) + (f". {finding.advice}" if finding.advice else "")
        yield f"{finding.level:7}  {finding.about:{width}}  {said}"
    counts = Counter(finding.level for finding in found)
    yield ", ".join(f"{counts[level]} {level}{'s' * (level != OK and counts[level] != 1)}" for level in (PROBLEM, NOTE, OK))


def as_json(found: Sequence[Finding], *, project: bool) -> dict[str, Any]:
    """The structure that docs/commands.md describes. project: whether the checks of a project are among them."""
    return {"format": 1, "project": project, "findings": [asdict(finding) for finding in found]}


def healthy(found: Iterable[Finding]) -> bool:
    return all(finding.level != PROBLEM for finding in found)
