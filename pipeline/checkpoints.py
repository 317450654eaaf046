"""When a training saves its state, under which names, and for how long.

The state itself is `pruneonce.training.resume`'s. No stage depends on this module: nothing in here changes an out.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.stopping import Stop

ROOM_SECONDS = 3.0  # a process that is to stop saves a state if the last one took no longer: it is killed soon
SHARE = 0.05  # of a training's time, about the most that saving takes: the state of a large model is gigabytes
KEPT = 2  # if the last one is damaged, the one before it is taken
NAME = re.compile(r"(.+)-(\d{8})\.safetensors")


@dataclass
class Checkpoints:
    """The saved states of one training: `<name>-<steps>.safetensors` in a folder, the last two.

    every_seconds: between two states, or longer where saving one takes more than SHARE of that; 0: one after every step.
    The time is the monotonic clock's, which nobody sets.
    stop: if it is asked for, a state that is not too large is saved at the end of the running step, and the process leaves.
    before_saving: called before a state is written. So what belongs to it is on the disk first.
    """

    folder: Path
    name: str = "state"
    every_seconds: float = 60.0
    stop: Stop = field(default_factory=Stop)
    before_saving: Callable[[], object] = lambda: None
    last: float = field(default_factory=time.monotonic)  # when a state was saved, or the training began
    took: float = 0.0  # seconds, to save the last one

    def newest_first(self) -> list[Path]:
        """The states that are there; a folder in the place of one counts."""
        found = {path: match for path in self.folder.glob("*.safetensors") if (match := NAME.fullmatch(path.name))}
        return sorted((path for path, match in found.items() if match[1] == self.name), reverse=True)

    def after_step(self, steps: int, save: Callable[[Path, int], bool]) -> None:
        """Save the state of so many steps if it is time. Does not return if the process is to stop.

        save: writes it, whole or not at all; returns whether it did.
        """
        if self.due(steps) or (self.stop.asked and self.took < ROOM_SECONDS):
            began = time.monotonic()
            with self.stop.saved_first():
                self._save(steps, save)
            self.last = time.monotonic()
            self.took = self.last - began
        self.stop.after_step()

    def _save(self, steps: int, save: Callable[[Path, int], bool]) -> None:
        self.before_saving()
        for half_written in self.folder.glob(f"{self.name}-*.part"):  # of a process that was killed
            half_written.unlink(missing_ok=True)
        path = self.folder / f"{self.name}-{steps:08}.safetensors"
        if save(path, steps):
            found = self.newest_first()
            ahead = [other for other in found if other.name > path.name]  # this training did not begin from them
            for old in (*ahead, *found[len(ahead) :][KEPT:]):
                with suppress(OSError):
                    old.unlink()

    def due(self, steps: int) -> bool:
        """Whether a state is to be saved now. steps: that were taken."""
        seconds = max(self.every_seconds, self.took / SHARE) if self.every_seconds else 0.0
        return time.monotonic() - self.last >= seconds

    def remove(self) -> None:
        """Remove all of them: the training is finished, and its result is kept."""
        for path in self.newest_first():
            path.unlink(missing_ok=True)


class Follower(Checkpoints):
    """Of a process that is not the first one of its launch: it saves nothing, and reads what the first one saved.

    It goes on until the first one has left, which could not end its step without this one.
    """

    def after_step(self, steps: int, save: Callable[[Path, int], bool]) -> None:
        self.stop.be_patient()

    def remove(self) -> None:
        pass


def any_in(folder: Path) -> bool:
    """Whether a training has saved a state in this folder."""
    return any(NAME.fullmatch(path.name) for path in folder.glob("*.safetensors"))
