"""Checkpoints of a training in a test: after every so many steps, not by time."""

from dataclasses import dataclass

from pipeline.checkpoints import Checkpoints


@dataclass
class EverySteps(Checkpoints):
    """Saves a state after every `steps` steps."""

    steps: int = 5

    def due(self, steps: int) -> bool:
        return steps % self.steps == 0
