"""What a profile would cost, as numbers: checked and counted, for the page and for a program."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.params import profiles
from pipeline.params.document import Params
from pipeline.params.reading import read_yaml
from pipeline.plan import costs, inventory
from pipeline.plan.costs import Model, Rate, Work
from pipeline.plan.inventory import Source
from pruneonce import step_costs
from pruneonce.errors import ModelError
from pruneonce.sparsity import masks, matrices


@dataclass(frozen=True)
class Plan:
    """A profile and its costs. name: of its file. document: as it was read. rows: of each task, to train on."""

    name: str
    document: Mapping[str, Any]
    p: Params
    model: Model
    entries: Sequence[matrices.Matrices]
    sources: Mapping[str, Source]
    rows: Mapping[str, int | None]
    corpus: float | None
    work: Sequence[Work]
    rate: Rate


def plan(profile: str | None, rate: Rate) -> Plan:
    """The plan of a profile; None for params.yaml. Raises PruneOnceError at the first thing that does not fit."""
    profiles.current()  # for every profile: dvc.yaml and the sources are in the same folder
    name, document, p = profiles.stated(profile)
    model, entries = _built(p)
    p.check_lengths(model.shape.positions)
    sources = {name: inventory.source(name, p) for name in sorted(p.sources())}
    rows = {task: costs.rows_of(task, p, sources) for task in p.tasks}
    corpus = costs.corpus_bytes(p, sources)
    wired = read_yaml(Path("dvc.yaml"))["stages"]  # a project with a sparse checkpoint has no `sparsify`
    pre_training = [w for w in costs.pre_training(p, model, rate.gpus) if w.name in wired]
    work = [*pre_training, *costs.task_training(p, model, rate.gpus, rows)]
    return Plan(name, document, p, model, entries, sources, rows, corpus, work, rate)


def _built(p: Params) -> tuple[Model, list[matrices.Matrices]]:
    """The model, without its weights, and its matrices. Raises ModelError, which names the source of the configuration."""
    facts = inventory.source(p.common.model, p).facts()
    build = step_costs.build_for_pairs if p.prepare_corpus.next_sentence else step_costs.build
    try:
        model = build(facts)
        shape = step_costs.shape(model, masks.prunable(model, p.sparsify.prunable))
    except ModelError as error:
        raise ModelError(f"config.json of source {p.common.model!r}: {error}") from None
    forward = cache(partial(step_costs.forward_flops, model))
    return Model(shape, forward), matrices.matrices(model, p.sparsify.prunable)


def counts(found: Plan, source: Source) -> dict[str, int | None]:
    """Rows of each split of a source that a task or the corpus reads; None: not known yet."""
    return {
        split: source.rows(split, [column], skip_rows=skip) for split, (column, skip) in _columns(found.p, source).items()
    }


def _columns(p: Params, source: Source) -> dict[str, tuple[str, int]]:
    """The splits of a source that a task or the corpus reads: a column, and how many lines to skip."""
    columns: dict[str, tuple[str, int]] = {}
    for task in p.tasks:
        section: Any = p.section("prepare_task", task)
        if section.source == source.name:
            splits = {*costs.SPLITS, *section.further_tests}
            columns |= {split: (section.text, section.skip_rows) for split in source.splits() if split in splits}
    return columns | {d.split: (d.column, d.skip_rows) for d in p.prepare_corpus.documents if d.source == source.name}


def as_json(found: Plan) -> dict[str, Any]:
    """The structure that docs/commands.md describes. What is not known is null."""
    shape = found.model.shape
    sizes = ("layers", "hidden", "feed_forward", "heads", "positions", "parameters", "prunable")
    return {
        "format": 1,
        "profile": found.name,
        "title": found.p.report.title,
        "tasks": list(found.p.tasks),
        "model": {"source": found.p.common.model, **{key: getattr(shape, key) for key in sizes}},
        "sparsity": found.p.sparsify.sparsity,
        "sources": [
            {"name": name, "rows": counts(found, source), "bytes": source.bytes, "known": source.known}
            for name, source in found.sources.items()
        ],
        "corpus_tokens": costs.corpus_tokens(found.p, found.corpus),
        "training": list(_training(found)),
        "file_bytes": step_costs.file_bytes(shape),
    }


def _training(found: Plan) -> Iterator[dict[str, Any]]:
    for work in found.work:
        yield {
            "stage": work.name,
            "steps": work.steps,
            "tokens": work.tokens,
            "flops": _known(work.flops),
            "rows": work.rows,
            "length": work.length,
            "memory_bytes": dict(work.memory),
            "seconds": _known(found.rate.seconds(work)),
        }


def _known(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else number
