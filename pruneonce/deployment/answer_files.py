"""The logits of every batch as a file: read back, they are the same bits."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from pruneonce.deployment.measurements import Answer


def write_logits(answers: Iterable[Answer], path: Path) -> None:
    """Write the logits of the answers, in their order."""
    save_file({f"{number:09d}": np.ascontiguousarray(logits) for number, (_, logits) in enumerate(answers)}, path)


def read_logits(path: Path) -> list[np.ndarray]:
    """Return the logits of every batch, in the order in which they were written."""
    return [logits for _, logits in sorted(load_file(path).items())]
