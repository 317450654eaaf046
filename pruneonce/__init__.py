"""Prune a Transformer language model once, for all tasks: masks, distillation, QAT, ONNX. Usable alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruneonce.deployment.runtime import Session


def load(path: str | Path, *, threads: int = 0) -> Session:
    """A session that runs the model: session.run(["logits"], {"input_ids": ids, "attention_mask": mask}).

    Both inputs are int64[batch, length]. A model of text pairs may also read token_type_ids. A model of questions returns
    start_logits and end_logits, float[batch, length].

    path: an ONNX file if it ends in .onnx, otherwise a file that `pruneonce pack` wrote. That one is unpacked in memory.
    threads: of the processor; 0 for one a core. Needs onnxruntime and numpy, no torch.
    Raises PackError for a file that is damaged, cut short or of another kind. `run` raises ModelError for inputs that the
    model cannot read, such as a text that is too long.
    """
    from pruneonce.deployment import runtime, safe_files, unpacking  # here, so that `import pruneonce` stays light

    path = Path(path)
    safe_files.check_file(path)
    return runtime.session(path if path.suffix == ".onnx" else unpacking.read(path), threads=threads)
