"""What an exported model says of itself, in the ONNX metadata: its task, its labels, its origin, its tokenizer.

Two entries of the file's metadata, beside that of `inspect`:

    pruneonce.about      JSON: task, variant, kind of task with its labels, sparsity, pattern, bits, score on validation,
                         md5 of all data that the export read, digest of its parameters, digest of the tokenizer
    pruneonce.tokenizer  tokenizer.json as it is, so that the file answers text alone

`about` reads them. Both are functions of what was exported: the same export writes the same bytes. Packing keeps them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ABOUT, TOKENIZER = "pruneonce.about", "pruneonce.tokenizer"
FORMAT = 1


def write(path: Path, about: Mapping[str, Any], tokenizer: str | None) -> None:
    """Add both entries to an ONNX file. tokenizer: the text of tokenizer.json; None for one that has no such file."""
    import onnx  # here, so that `about` stays light

    proto = onnx.load(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    entries[ABOUT] = json.dumps({"format": FORMAT, **about, "tokenizer": _named(tokenizer)}, sort_keys=True)
    onnx.helper.set_model_props(proto, entries | ({TOKENIZER: tokenizer} if tokenizer is not None else {}))
    onnx.save(proto, path)


def _named(tokenizer: str | None) -> dict[str, str] | None:
    return None if tokenizer is None else {"sha256": hashlib.sha256(tokenizer.encode()).hexdigest()}


# Blocks of (outputs, inputs) that are all zero or all not; then groups of inputs of which at most so many are not zero.
BLOCKS = {"1x4": (1, 4), "4x1": (4, 1)}
GROUPS = {"2:4": (2, 4), "4:8": (4, 8)}


def pattern(matrices: Iterable[np.ndarray]) -> str:
    """The pattern that the zeros of all matrices [outputs, inputs] keep; "dense" if there are none.

    Read it from float weights: int8 rounds further weights to zero, which breaks a block.
    """
    kept = [weight != 0 for weight in matrices]
    if all(one.all() for one in kept):
        return "dense"
    for name, (rows, columns) in BLOCKS.items():
        if all(_in_blocks(one, rows, columns) for one in kept):
            return name
    for name, (most, size) in GROUPS.items():
        if all(_in_groups(one, most, size) for one in kept):
            return name
    return "unstructured"


def _in_blocks(kept: np.ndarray, rows: int, columns: int) -> bool:
    outputs, inputs = kept.shape
    if outputs % rows or inputs % columns:
        return False
    blocks = kept.reshape(outputs // rows, rows, inputs // columns, columns)
    return bool((blocks.all((1, 3)) == blocks.any((1, 3))).all())


def _in_groups(kept: np.ndarray, most: int, size: int) -> bool:
    outputs, inputs = kept.shape
    return inputs % size == 0 and bool((kept.reshape(outputs, inputs // size, size).sum(-1) <= most).all())
