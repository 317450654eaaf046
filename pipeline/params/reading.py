"""YAML files of parameters, read with the parser that DVC uses."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.params import bounds
from pruneonce.errors import ConfigError


def read_yaml(path: Path) -> Any:
    """The file with the parser DVC uses, ruamel (PyYAML would read 1e-4 as a string). Raises ConfigError."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A file of parameters, in UTF-8. Raises ConfigError for one that is not there, or cannot be read."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"expected a file at {path}, found a device or a pipe. It is not read: it may never end.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"expected the file {path}, found none. Run inside the repository.") from None
    except (OSError, ValueError) as error:  # a folder, no permission, too long a name; no UTF-8, a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"expected a file in UTF-8, found one that cannot be read ({why}): {path}") from None


def parse_yaml(text: str, name: str, yaml: YAML | None = None, *, generated: bool = False) -> Any:
    """YAML out of `text`, which came from `name`. Raises ConfigError: where `bounds` does, before anything is built.

    generated: a program wrote it (`bounds.check`).
    """
    try:
        bounds.check(text, name, generated=generated)
        document = (yaml or YAML(typ="safe")).load(text)
        bounds.check_values(document, name)
    except ConfigError:
        raise
    except Exception as error:  # ruamel.yaml has errors of its own, and those of Python for a bad date or 5,000 digits
        if re.search("^<<<<<<< ", text, re.MULTILINE):
            raise ConfigError(
                f"A merge conflict stands in {name}: take a side of it, e.g. git checkout --ours -- {name}"
            ) from None
        reason = str(error).replace('"<unicode string>"', name)
        raise ConfigError(f"expected YAML in {name}, found: {type(error).__name__}: {reason}. Correct it.") from None
    return document
