"""A model's folder, checked before a library reads it, and the errors of libraries as one ModelError.

A folder may be damaged, or written by another library or version.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers
from safetensors import safe_open

from pruneonce.errors import ModelError, PruneOnceError
from pruneonce.files import is_lfs_pointer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # which weight is in which file, where there are several
JSON_OBJECTS = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    INDEX,
)
VOCABULARIES = (
    *("vocab.txt", "vocab.json", "merges.txt", "spm.model"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
FLOATS = ("F64", "F32", "F16", "BF16")


@contextmanager
def reading(what: str, folder: Path) -> Iterator[None]:
    """Check the files of the folder, then run the block. Every error of a library in it becomes one ModelError.

    what: the thing that the block reads, for the message.
    """
    if not folder.is_dir():
        raise ModelError(f"expected {what} in {folder}, found no such folder.")
    for path in sorted(folder.iterdir()):
        checked = path.name in (*JSON_OBJECTS, *VOCABULARIES) or path.match("model*.safetensors")
        if checked and (fault := _fault(path)):
            raise ModelError(f"expected {what} in {folder}, found {path.name} as {fault}.")
    try:
        yield
    except (PruneOnceError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is a BaseException, but no Exception
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        hint = _tokenizer_hint(folder)
        raise ModelError(f"expected {what} in {folder}, found none that loads{hint}: {kind}{error}") from None


def _tokenizer_hint(folder: Path) -> str:
    """Return a possible reason, if tokenizer.json is the file that cannot be read; else nothing."""
    path = folder / "tokenizer.json"
    try:
        tokenizers.Tokenizer.from_file(str(path))
    except BaseException:
        return f", as {path.name} is damaged or of newer tokenizers than {tokenizers.__version__}" if path.exists() else ""
    return ""


def _fault(path: Path) -> str:
    """Return the fault of a file and what to do; empty if a library may read it."""
    if not path.is_file():
        return "a folder" if path.is_dir() else f"a link to {path.readlink()}, where nothing is: copy the file itself"
    if is_lfs_pointer(path):
        return "a pointer of git-LFS, not the file itself: run `git lfs pull` where it was cloned"
    if not path.stat().st_size:
        return "an empty file: fetch it again"
    if path.name in JSON_OBJECTS:
        return _json_fault(path)
    return _weights_fault(path) if path.suffix == ".safetensors" else ""


def _json_fault(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error}): it is damaged or cut short, fetch it again"
    if not isinstance(content, dict):
        return f"a JSON {type(content).__name__}, not an object: fetch it again"
    return _index_fault(path, content) if path.name == INDEX else ""


def _index_fault(path: Path, index: dict) -> str:
    files = index.get("weight_map", {})
    if not (isinstance(files, dict) and files and all(isinstance(name, str) for name in files.values())):
        return "an index without a `weight_map` of names to files: fetch it again"
    if outside := sorted(name for name in set(files.values()) if Path(name).name != name):
        return f"an index that names {outside[0]!r}, which is no file beside it: fetch it again"
    if path.with_name(WEIGHTS).exists():  # then no library reads the index
        return ""
    if not isinstance(index.get("metadata"), dict):
        return "an index without an object `metadata`: fetch it again"
    if missing := sorted(name for name in set(files.values()) if not path.with_name(name).is_file()):
        return f"an index that names {missing[0]}, which is not there: fetch all files of the model again"
    return ""


def _weights_fault(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118, no dict
    except Exception as error:
        return f"no safetensors ({error}): it is damaged or cut short, fetch it again"
    integers = [key for key, dtype in dtypes.items() if key.endswith((".weight", ".bias")) and dtype not in FLOATS]
    if integers:
        return f"weights in {dtypes[integers[0]]} ({integers[0]}): take the model before it was quantized"
    return ""
