"""Which params.yaml a run uses: the file as it stands, or a profile, with single numbers changed.

A profile is a whole params file in profiles/. Using one replaces params.yaml, so that `dvc repro`, `dvc params diff` and
the next run see what was run; edits that git does not have are never overwritten.
"""

import hashlib
import subprocess
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import params
from pruneonce.errors import ConfigError

PARAMS = Path("params.yaml")
FOLDER = Path("profiles")


def names() -> list[str]:
    """The profiles there are; `default` is params.yaml as git has it."""
    return ["default", *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def select(profile: str | None, overrides: Sequence[str] = ()) -> params.Params:
    """Make params.yaml the profile (None: as it stands) with `section.key=value` overrides. Validated before it is written.

    Raises ConfigError for an unknown profile or key, a bad value, or edits that would be lost.
    """
    if not PARAMS.is_file():
        raise ConfigError(f"expected the file {PARAMS}, found none. Run inside the repository.")
    before = PARAMS.read_text()
    source = str(PARAMS) if profile in (None, "default") else f"{FOLDER}/{profile}.yaml"
    text = before if profile is None else _text_of(profile)
    text = _override(text, overrides, source) if overrides else text
    chosen = params.parse(params.parse_yaml(text, source), f"{source} with {list(overrides)}" if overrides else source)
    if text != before:
        if profile is not None and not _known(before):
            raise ConfigError(
                f"expected params.yaml as git or a profile has it, found edits that profile {profile!r} would overwrite. "
                f"Commit them, or save the file as {FOLDER}/<name>.yaml, and run again."
            )
        PARAMS.write_text(text)
    return chosen


def _text_of(profile: str) -> str:
    if profile == "default":
        return _committed(PARAMS)
    path = FOLDER / f"{profile}.yaml"
    if not path.is_file():
        raise ConfigError(f"expected one of the profiles {names()}, found {profile!r}.")
    return path.read_text()


def _committed(path: Path) -> str:
    done = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else path.read_text()


def _known(text: str) -> bool:
    """Whether this text is kept somewhere: in git, in a profile, or as a profile with overrides of ours, unedited since."""
    kept = [_committed(PARAMS), *(path.read_text() for path in FOLDER.glob("*.yaml"))]
    return text in kept or _marked(text)


MARK = "# Written by a run with overrides: "


def _marked(text: str) -> bool:
    first, _, body = text.partition("\n")
    return first.startswith(MARK) and first.endswith(f"({_digest(body)})")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _override(text: str, overrides: Sequence[str], source: str) -> str:
    """The text with each `a.b.c=value` set; comments and order are kept.

    A first line says what was changed, and carries a digest: without one, edits made by hand before or since would pass
    for ours, and be overwritten.
    """
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    document = params.parse_yaml(text, source, yaml)
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise ConfigError(f"expected an override like sparsify.sparsity=0.9, found {override!r}.")
        _set(document, key.strip().split("."), params.parse_yaml(value, f"override {override!r}"), override)
    out = StringIO()
    yaml.dump(document, out)
    body = out.getvalue().split("\n", 1)[1] if out.getvalue().startswith(MARK) else out.getvalue()
    return f"{MARK}{' '.join(overrides)} ({_digest(body)})\n{body}" if _known(text) else body


def _set(document: Any, path: list[str], value: Any, override: str) -> None:
    for depth, key in enumerate(path):
        if not isinstance(document, dict):
            raise ConfigError(f"expected a section at {'.'.join(path[:depth])}, found {document!r} (override {override!r}).")
        # A task's block may lack a key of its recipe; everything else must be there already.
        may_add = path[0] == "tasks" and depth == len(path) - 1
        if key not in document and not may_add:
            raise ConfigError(f"expected one of the keys {list(document)}, found {key!r} in override {override!r}.")
        if depth == len(path) - 1:
            document[key] = value
        else:
            document = document[key]
