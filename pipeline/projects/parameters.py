"""params.yaml of a project: out of the code's default for a new one, or with one more task. Comments and order stay."""

import os
import re
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from pipeline.params import overlay, profiles
from pipeline.params.document import Params, parse
from pipeline.params.profiles import PARAMS, dump, round_trip
from pipeline.params.reading import parse_yaml, read_text
from pipeline.plan.inventory import configuration
from pipeline.projects.wiring import SPARSE
from pruneonce import projects
from pruneonce.errors import ConfigError

MODEL = "model"  # the source of a model that is not the default one
TOP = "Every number that you may change. One section a stage; a run computes what a change reaches, and nothing else."
ANY_SIZE = 10**9  # of a model that is not known yet
HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")


def default() -> CommentedMap:
    """The default params.yaml of the code, without the studies."""
    path = projects.root() / PARAMS
    document = parse_yaml(read_text(path), str(path), round_trip())
    whole = CommentedMap({"file": document})
    for section in ("study", "patterns"):
        overlay.drop(whole, "file", section)
    document.insert(0, "pruneonce", DoubleQuotedScalarString(projects.installed()), comment="the version that computes")
    document.yaml_set_start_comment(TOP)
    gates = document["gates"]
    gates["least_score"] = None  # the number is that of the code's own tasks
    gates.ca.items.pop("least_score", None)
    gates.yaml_add_eol_comment("null: better than the most frequent class; or a number", "least_score", column=32)
    return document


def drop_tasks(document: CommentedMap, *kept: str) -> None:
    """Take all tasks but these out of the document, with their sources."""
    for task in [task for task in document["tasks"] if task not in kept]:
        source = document["tasks"][task]["prepare_task"]["source"]
        overlay.drop(document, "tasks", task)
        if source in document["fetch"]:
            overlay.drop(document, "fetch", source)


def lay(document: CommentedMap, over: CommentedMap) -> Params:
    """Lay sections over the document, in place. Returns it validated; raises ConfigError."""
    overlay.lay(document, over)
    return checked(document)


def checked(document: CommentedMap) -> Params:
    """The document validated, as it will be read. Raises ConfigError."""
    for section in profiles.BLOCKS:
        if not document[section] and not document[section].fa.flow_style():
            document[section] = CommentedMap()  # without the comments of what was in it
            document[section].fa.set_flow_style()
            document.ca.items[section] = [None, None, CommentToken("\n\n", CommentMark(0), None), None]
    return parse(parse_yaml(dump(document), str(PARAMS)), str(PARAMS))


def add_source(document: CommentedMap, name: str, where: str, folder: Path) -> Path | None:
    """Add a model as a source: a folder of this machine, or owner/name@commit of the hub. folder: the project's.

    Returns the folder, None for one of the hub. Raises ConfigError for anything else.
    """
    if (hub := HUB.fullmatch(where)) and not Path(where).exists():
        keys: dict[str, Any] = {"repository": hub[1], "kind": "model", "revision": hub[2], "config": None}
        overlay.lay(
            document, CommentedMap({"fetch": CommentedMap({name: CommentedMap({**keys, "splits": {}, "expects": None})})})
        )
        return None
    path = Path(where)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"expected a model's folder with a config.json, or OWNER/NAME@COMMIT of the hub with all 40 digits of it, "
            f"found {where!r}."
        )
    source = CommentedMap({"path": place(path, folder), "members": CommentedMap({".": "."}), "sha256": None})
    overlay.lay(document, CommentedMap({"fetch_local": CommentedMap({name: source})}))
    return path


def place(path: Path, folder: Path) -> str:
    """A file's path from the project's folder."""
    return os.path.relpath(path.resolve(), folder.resolve())


def set_model(document: CommentedMap, where: str, folder: Path) -> None:
    """Take another dense model than the default one. Its positions are the most that any number of tokens may be."""
    path = add_source(document, MODEL, where, folder)
    old = document["common"]["model"]
    document["common"]["model"] = MODEL
    overlay.drop(document, "fetch", old)
    document["gates"]["most_packed_bytes"] = ANY_SIZE
    document["report"]["title"] = f"{Path(where.partition('@')[0]).name}, pruned once"
    if path is not None:
        weights = path / "model.safetensors"
        if weights.is_file():  # a byte a weight, before the zeros are packed
            document["gates"]["most_packed_bytes"] = weights.stat().st_size // 4
        positions = configuration(path / "config.json").get("max_position_embeddings")
        _shorten(document, positions if isinstance(positions, int) else None)


def _shorten(document: CommentedMap, most: int | None) -> None:
    for section, key in (
        ("prepare_corpus", "block_tokens"),
        ("prepare_task", "max_tokens"),
        ("evaluate", "latency_tokens"),
        *((stage, "max_tokens") for stage in ("teach_task", "finetune", "quantize")),
    ):
        if most and document[section][key] > most:
            document[section][key] = most


def set_corpus(document: CommentedMap, texts: tuple[str, str] | None, *, own: bool) -> None:
    """texts: source and column of a task whose texts join the corpus. own: they are all of it."""
    documents = document["prepare_corpus"]["documents"]
    if own:
        names = {each["source"] for each in documents}
        del documents[:]
        for name in names:
            overlay.drop(document, "fetch", name)
    if texts:
        entry = CommentedMap({"source": texts[0], "split": "train", "column": texts[1], "skip_rows": 0})
        entry.fa.set_flow_style()
        documents.append(entry)


def set_sparse(document: CommentedMap, where: str, folder: Path) -> Path | None:
    """Add the sparse checkpoint that enters in place of `sparsify`."""
    return add_source(document, SPARSE, where, folder)


def save(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
