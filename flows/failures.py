"""Units of work that failed: the others go on, and the run tells of all of them at its end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from prefect import get_run_logger

from flows.trouble import StageFailed
from pruneonce.errors import plain


@dataclass
class Failures:
    """What a run could not get: of each unit a sentence. lost: takes the name of a unit, and why."""

    lost: Callable[[str, str], object] = lambda name, why: None
    told: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, why: str, *, how: str = "failed on its worker") -> None:
        """One unit failed; the others go on."""
        self.told[name] = f"{name} {how}: {why.rstrip('.')}."
        get_run_logger().error("%s", self.told[name])
        self.lost(name, why)

    def check(self) -> None:
        """Raises StageFailed if there is one."""
        if self.told:
            told = " ".join(self.told.values())
            raise StageFailed(f"{told} All else that was computed is kept; run again for what is missing.")


def in_words(error: Exception) -> str:
    """An error of one unit as a line. It may be of Prefect, of a remote, of a damaged result: others go on."""
    return f"{type(error).__name__}: {plain(error)}"
