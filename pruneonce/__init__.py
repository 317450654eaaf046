"""Prune a Transformer language model once, for all tasks: masks, distillation, QAT, ONNX. Usable alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruneonce.deployment.runtime import Session


def load(path: str | Path, *, threads: int = 0) -> Session:
    """A model that answers: session.run(["logits"], {"input_ids": ids, "attention_mask": mask}), both int64[batch, length].

    One of pairs reads token_type_ids too; one of questions says start_logits and end_logits, float[batch, length].

    path: *.onnx, or any other name for what `pruneonce pack` wrote, which is unpacked in memory, never on the disk.
    threads: of the processor; 0 for as many as cores. Needs onnxruntime, numpy and tqdm, no torch.
    Raises PackError for a file that is damaged, cut short or foreign; `run` raises ModelError for what the model cannot
    read, such as a text of more tokens than it has positions for.
    """
    from pruneonce.deployment import (
        packing,
        runtime,
        unpacking,  # here, so that `import pruneonce` costs nothing
    )

    path = Path(path)
    packing.check_file(path)
    return runtime.session(path if path.suffix == ".onnx" else unpacking.read(path), threads=threads)
