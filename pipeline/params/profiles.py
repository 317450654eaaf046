"""The params.yaml of a run: the file as it is, or a profile, with single values changed.

A profile is a file in profiles/. Its first key may be `extends`, one name or a list of names. Those files are merged in
their order, and the profile's own keys last. Names with a folder, such as `tasks/mnli`, are blocks for `extends`.
In a profile `tasks: {r8: null}` drops an inherited task. The same holds for sources in `fetch` and `fetch_local`; elsewhere
null is a value. Using a profile replaces params.yaml, so `dvc repro` and the next run see it. Edits that git does not have
are never overwritten.
"""

import hashlib
from collections.abc import Sequence
from functools import partial, reduce
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline import git
from pipeline.params import overlay
from pipeline.params.document import Params, override, parse
from pipeline.params.reading import parse_yaml, read_text
from pruneonce.errors import ConfigError, PipelineError, plain

PARAMS = Path("params.yaml")
FOLDER = Path("profiles")
BLOCKS = ("tasks", "fetch", "fetch_local")  # sections of named blocks
DEEPEST = 8  # files that extend one another


def names() -> list[str]:
    """The names of the profiles; `default` is params.yaml as git has it."""
    return ["default", *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def select(profile: str | None, overrides: Sequence[str] = ()) -> Params:
    """Write the profile (None: the file as it is) with `section.key=value` overrides to params.yaml, after validating it.

    Raises ConfigError for an unknown profile or key, a bad value, edits that would be lost, or without git.
    """
    text, selected = _checked(profile, overrides)
    if text != current():
        part = PARAMS.with_suffix(".part")  # whole or not at all
        part.write_text(text, encoding="utf-8")
        part.replace(PARAMS)
    return selected


def check(profile: str | None, overrides: Sequence[str] = ()) -> Params:
    """The result of `select`, and every error that it would raise; nothing is written."""
    return _checked(profile, overrides)[1]


def _checked(profile: str | None, overrides: Sequence[str]) -> tuple[str, Params]:
    before = current()
    _committed()  # raises without git
    source = file_of(profile)
    text = before if profile is None else read(profile)
    text = _override(text, overrides, source) if overrides else text
    selected = parse(parse_yaml(text, source), f"{source} with {list(overrides)}" if overrides else source)
    if profile is not None and text != before and not _known(before):
        raise ConfigError(
            f"expected params.yaml as git or a profile has it, found edits that profile {profile!r} would overwrite. Keep "
            f"them with: git add {PARAMS} && git commit -m params; or as a profile with: cp {PARAMS} {FOLDER}/NAME.yaml; or "
            f"drop them with: git checkout {PARAMS}. Then run again."
        )
    return text, selected


def stated(profile: str | None) -> tuple[str, CommentedMap, Params]:
    """A profile as it stands, None for params.yaml: its file, its document, and what the document says."""
    name = file_of(profile)
    document = parse_yaml(current() if profile is None else read(profile), name)
    return name, document, parse(document, name)


def file_of(profile: str | None) -> str:
    """The file of a profile; params.yaml for None and for `default`."""
    return str(PARAMS) if profile in (None, "default") else f"{FOLDER}/{profile}.yaml"


def files(name: str) -> list[str]:
    """The files that a profile is made of: its own, and those that it extends. Raises ConfigError for an unknown name."""
    return [file_of(name), *(file for base in _bases(_parsed(name), name) for file in files(base))]


def current() -> str:
    """params.yaml as it is. Raises ConfigError outside of the repository."""
    return read_text(PARAMS)


def read(profile: str) -> str:
    """The text of the params.yaml that the profile gives, not validated. Raises ConfigError for an unknown name."""
    if "extends" not in _parsed(profile):
        return _text(profile)
    return _mark(f"from {FOLDER}/{profile}.yaml", dump(_whole(profile, ())))


def _text(name: str) -> str:
    """A profile's or block's own file."""
    if name == "default":
        return _committed()
    blocks = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))
    if name not in (*names(), *blocks):  # not the disk: some names are too long for it
        raise ConfigError(
            f"expected one of the profiles {names()}, found {name!r}. `extends` may also name one of {blocks}."
        )
    return read_text(FOLDER / f"{name}.yaml")


def _parsed(name: str) -> CommentedMap:
    document = parse_yaml(_text(name), file_of(name), round_trip())
    if not isinstance(document, CommentedMap):
        raise ConfigError(f"expected sections in {file_of(name)}, found {document!r}.")
    return document


def _whole(name: str, above: tuple[str, ...]) -> CommentedMap:
    """The file merged over the files that it extends. above: the files that extend it."""
    if name in above or len(above) == DEEPEST:
        raise ConfigError(f"expected profiles whose `extends` ends soon, found {' extends '.join([*above, name])}.")
    document = _parsed(name)
    layers = [_whole(base, (*above, name)) for base in _bases(document, name)]
    return reduce(partial(_lay, name=name), [*layers, document])


def _bases(document: CommentedMap, name: str) -> list[str]:
    """Remove `extends` from a file. Returns its names."""
    value = document.pop("extends", [])
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases) or len(set(bases)) < len(bases):
        raise ConfigError(f"expected a name, or names that differ, in `extends` of {FOLDER}/{name}.yaml, found {value!r}.")
    return bases


def _lay(base: CommentedMap, over: CommentedMap, name: str) -> CommentedMap:
    """Merge one layer over those below it. A null task or source is dropped. name: the file whose `extends` lists them."""
    for section in BLOCKS:
        block, below = over.get(section), base.get(section)
        for key in [key for key, value in block.items() if value is None] if isinstance(block, CommentedMap) else ():
            if not isinstance(below, CommentedMap) or key not in below:
                raise ConfigError(
                    f"expected {section}.{key}, which profile {name!r} drops, in what it extends, found there "
                    f"{list(below or ())}. Leave the line out."
                )
            overlay.drop(base, section, key)
            overlay.drop(over, section, key)
    return overlay.lay(base, over)


class _Representer(RoundTripRepresenter):
    """Writes null as `null`, which ruamel.yaml would leave out."""


_Representer.add_representer(type(None), lambda self, data: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def round_trip() -> YAML:
    """Keeps comments, order and the way things are written."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width, yaml.preserve_quotes = 4096, True  # a line that a person wrote is not broken
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def dump(document: CommentedMap) -> str:
    """The text of a document that `round_trip` read."""
    out = StringIO()
    round_trip().dump(document, out)
    return out.getvalue()


def _committed() -> str:
    """params.yaml as git has it. Raises ConfigError if git has none: DVC needs a repository, and edits are found by it."""
    try:
        done = git.run("show", f"HEAD:./{PARAMS}")
    except PipelineError as error:
        raise ConfigError(str(error)) from None
    if done.returncode != 0:
        raise ConfigError(
            f"expected {PARAMS} in a commit of git, found: {' '.join(done.stderr.split())}. Clone the project; or, in a "
            "copy of it, git init && git add --all && git commit -m copy"
        )
    return done.stdout


def _known(text: str) -> bool:
    """Whether this text is saved: in git, as a profile, or as a file that a run wrote and nobody edited since."""
    saved = [_committed(), *(path.read_text("utf-8", "replace") for path in FOLDER.glob("*.yaml"))]
    return text in saved or _marked(text)


MARK = "# Written by a run "


def _mark(how: str, body: str) -> str:
    """The text after a first line that says how a run made it. Its digest tells edits by hand, which are not overwritten."""
    return f"{MARK}{how} ({_digest(body)})\n{body}"


def _marked(text: str) -> bool:
    first, _, body = text.partition("\n")
    return first.startswith(MARK) and first.endswith(f"({_digest(body)})")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def _override(text: str, overrides: Sequence[str], source: str) -> str:
    """The text with each `a.b.c=value` set; comments and order stay."""
    document = parse_yaml(text, source, round_trip())
    for change in overrides:
        override(document, change)
    body = dump(document)
    body = body.split("\n", 1)[1] if body.startswith(MARK) else body
    return _mark(f"with overrides: {plain(' '.join(overrides))}", body) if _known(text) else body
