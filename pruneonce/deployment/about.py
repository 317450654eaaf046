"""Read what an exported model says of itself: `provenance` wrote it. Needs numpy, no onnx and no ONNX Runtime."""

import io
import json
from pathlib import Path
from typing import Any

from pruneonce.deployment.protobuf import metadata
from pruneonce.deployment.provenance import ABOUT, FORMAT
from pruneonce.deployment.unpacking import model
from pruneonce.errors import PackError


def entries(source: Path | bytes) -> dict[str, str]:
    """The metadata of an ONNX file, of a packed one, or of an ONNX file's bytes. Raises PackError for anything else."""
    found = model(source) if isinstance(source, Path) else source
    with io.BytesIO(found) if isinstance(found, bytes) else found.open("rb") as file:
        return metadata(file)


def about(source: Path | bytes) -> dict[str, Any]:
    """What the file says of itself; empty for a file that says nothing. Raises PackError if it is not readable."""
    return parse(entries(source).get(ABOUT), str(source) if isinstance(source, Path) else "the model")


def parse(written: str | None, name: str) -> dict[str, Any]:
    """The entry `pruneonce.about` of the file `name`; empty if there is none. Raises PackError for another format."""
    if written is None:
        return {}
    try:
        said = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise PackError(f"expected JSON in the entry {ABOUT} of {name}, found: {error}. Export it again.") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        found = said.get("format") if isinstance(said, dict) else type(said).__name__
        raise PackError(f"expected format {FORMAT} in the entry {ABOUT} of {name}, found {found}. Update pruneonce.")
    return said
