"""Prune a Transformer language model once, for all tasks: masks, distillation, QAT, ONNX. Usable alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruneonce.deployment.runtime import Session


def load(path: str | Path, *, threads: int = 0, execution: str = "auto") -> Session:
    """A session that runs the model: session.run(["logits"], {"input_ids": ids, "attention_mask": mask}).

    Both inputs are int64[batch, length]. A model of text pairs may also read token_type_ids. A model of questions returns
    start_logits and end_logits, float[batch, length].

    path: an ONNX file if it ends in .onnx, otherwise a file that `pruneonce pack` wrote. That one is unpacked in memory.
    threads: of the processor; 0 for one a core.
    execution: "auto" runs every int8 matrix the faster way on this processor, by the sparse kernel or by ONNX Runtime's own
    product. "sparse" and "stock" take one of the two for all. `pruneonce inspect` prints what runs how.
    Needs onnxruntime, onnx, onnx-ir and numpy, no torch.
    Raises KernelsError for "sparse" where the library of the kernels is missing. Raises PackError for a file that is
    damaged, cut short or of another kind. `run` raises ModelError for inputs that the model cannot read, such as a text
    that is too long.
    """
    from pruneonce.deployment import execution as running  # here, so that `import pruneonce` stays light
    from pruneonce.deployment import unpacking

    return running.session(unpacking.model(Path(path)), threads=threads, execution=execution)
