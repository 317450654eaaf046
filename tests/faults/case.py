"""A case of a suite, and what came of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.faults.ground import Ground


@dataclass(frozen=True)
class Case:
    """suite, name: of the fault. lost: what was lost by it; empty if nothing. figures: what was counted or measured."""

    suite: str
    name: str
    lost: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        numbers = ", ".join(f"{key} {value:g}" for key, value in self.figures.items())
        return f"{'LOST' if self.lost else 'ok  '} {self.suite}: {self.name}{f' ({numbers})' if numbers else ''}" + "".join(
            f"\n     {what}" for what in self.lost
        )


Suite = Callable[[Ground], Iterator[Case]]
