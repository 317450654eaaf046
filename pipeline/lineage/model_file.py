"""A model file as trace sees it: the md5 of its ONNX bytes, packed or not, and what it says of itself."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.hashing import file_md5
from pruneonce.errors import PackError


@dataclass(frozen=True)
class ModelFile:
    """md5: of the file, or of the ONNX file that is packed in it. about: what the ONNX file says of itself, may be empty."""

    md5: str
    packed: bool
    about: dict[str, Any]


def read(file: Path) -> ModelFile:
    """What is known of a file or a folder by its bytes alone. Raises PackError for a packed file that is damaged."""
    if not file.is_file():
        return ModelFile(file_md5(file), False, {})
    if not _packed(file):
        return ModelFile(file_md5(file), False, about(file) if file.suffix == ".onnx" else {})
    from pruneonce.deployment import unpacking  # imports numpy

    try:
        onnx = unpacking.read(file)
    except PackError as error:
        raise PackError(f"{error} The file is {file}.") from None
    return ModelFile(hashlib.md5(onnx).hexdigest(), True, about(onnx))


def about(onnx: Path | bytes) -> dict[str, Any]:
    """The entry `pruneonce.about` of an ONNX file; empty if it has none, or is no ONNX file."""
    from pruneonce.deployment import about as reading  # imports numpy

    try:
        return reading.about(onnx)
    except PackError:
        return {}


def _packed(file: Path) -> bool:
    from pruneonce.deployment.packing import MAGIC  # imports numpy

    with file.open("rb") as stream:
        return file.suffix == ".packed" or stream.read(len(MAGIC)) == MAGIC


def said(about: dict[str, Any]) -> str:
    """What a model says of itself, in a line."""
    score = about.get("score") or {}
    parts = [f"a {about.get('variant', '?')} model of task {about.get('task', '?')}"]
    if isinstance(about.get("sparsity"), float):
        parts.append(f"{about['sparsity']:.1%} zeros ({about.get('pattern', 'unknown pattern')})")
    if isinstance(score, dict) and isinstance(score.get("value"), float):
        parts.append(f"{score.get('split', '')} {score.get('metric', 'score')} {score['value']:.4f}".strip())
    return ", ".join(parts)


def sha256_of(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
