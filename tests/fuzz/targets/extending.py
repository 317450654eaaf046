"""Profiles that extend one another, laid over each other with their comments, and overrides written into them."""

import json
from io import StringIO
from pathlib import Path
from random import Random

from ruamel.yaml import YAML

from pipeline.params import profiles
from pipeline.params.reading import parse_yaml
from pruneonce.errors import ConfigError
from tests.fuzz import damage
from tests.fuzz.case import Files
from tests.fuzz.targets.yaml_text import HOSTILE

OUTS: tuple[str, ...] = ()
SECONDS = 10.0
SHARE = 24

BASE = """\
# The base.
launcher: python                # what starts it

# Common to all.
common:                         # one for every stage
  model: small                  # ours
  # What is pruned:
  prunable: ^encoder            # paper
  threads: null

fetch: {a: {x: 1}}              # nothing yet
fetch_local: {}

corpus:
  documents:
    - {source: a}               # the first
    - {source: b}

# One block a task.
tasks:
  one:
    finetune: {epochs: 3}       # int
  two:
    # what two is
    finetune:
      epochs: 4

# the end
"""
DOCUMENT = YAML(typ="safe").load(BASE)
GOOD = {
    "top": ("base", ["base", "tasks/one"], "other", ["other", "tasks/one"]),
    "base": ("default",),
    "tasks/one": ("base",),
    "other": ("base", "default"),
}
NAMES = ("top", "base", "tasks/one", "other", "default")
EXTENDS = (
    *NAMES,
    *damage.WORDS,
    ["base"],
    ["base", "tasks/one"],
    ["base", "base"],
    [],
    None,
    1,
    {"a": 1},
    [["base"]],
    "base.yaml",
    "../base",
    "x" * 5000,
)


def make(draw: Random) -> Files:
    files = {"params.yaml": BASE.encode()}
    damaged = draw.choice((*NAMES[:4], None))
    for name in NAMES[:4]:
        whole = name == "base" or (name == "tasks/one" and draw.random() < 0.5)
        bases = draw.choice(EXTENDS if name == damaged and draw.random() < 0.5 else GOOD[name])
        first = b"" if whole and draw.random() < 0.9 else b"extends: " + damage.dumped(bases) + b"\n"
        files[f"profiles/{name}.yaml"] = first + (_damaged(draw) if name == damaged else _part(draw).encode())
    key = draw.choice(("common.model", "tasks.one.x", "fetch", "common.threads", "corpus.documents"))
    changes = [f"{key}={draw.choice(HOSTILE)}"]
    wanted = {
        "profile": draw.choice((*["top"] * 6, *NAMES, *damage.WORDS, "x" * 5000)),
        "changes": changes * draw.randrange(2),
    }
    return {**files, "wanted.json": json.dumps(wanted).encode()}


def _damaged(draw: Random) -> bytes:
    if draw.random() < 0.3:
        return draw.choice(HOSTILE).encode("utf-8", "surrogatepass")
    return damage.text(draw.choice((BASE, _part(draw))), draw, most=2)


def _part(draw: Random) -> str:
    """Some of the sections, some numbers and blocks null, some lines with a comment beside or above them."""
    out, yaml = StringIO(), YAML()
    yaml.dump({key: value for key, value in DOCUMENT.items() if draw.random() < 0.7}, out)
    lines = out.getvalue().splitlines() if out.getvalue() != "{}\n" else []
    lines = [f"{line.partition(':')[0]}: null" if draw.random() < 0.05 and line[-1] != ":" else line for line in lines]
    lines = [f"{line}  # c" if draw.random() < 0.2 else line for line in lines]
    return "\n".join(f"# d\n{line}" if draw.random() < 0.1 else line for line in lines) + "\n"


def run(folder: Path) -> None:
    wanted = json.loads(Path("wanted.json").read_text())
    profiles._committed = lambda: BASE  # type: ignore[assignment]  # git is asked by the tests, a process a case is too dear
    text = profiles.read(wanted["profile"])
    if wanted["changes"]:
        text = profiles._override(text, wanted["changes"], "here")
    try:
        parse_yaml(text, "here")
    except ConfigError as error:
        raise AssertionError("what was written cannot be read") from error
