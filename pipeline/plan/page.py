"""The costs of a profile on a page. Nothing is trained, fetched or written.

The profile is checked against its model's configuration and its sources. The page shows the graph of stages, the
matrices, the data, and the costs of every stage that trains: steps, tokens, FLOPs, memory and time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pipeline.params.document import Params
from pipeline.params.reading import read_yaml
from pipeline.plan import costs, planned
from pipeline.plan.costs import Rate, Work
from pipeline.plan.inventory import Source
from pipeline.plan.planned import Plan
from pipeline.tracking.lock import meet
from pruneonce import step_costs
from pruneonce.sparsity import masks, matrices
from pruneonce.step_costs import Shape

MANY_TIMES = 40  # BERT's own pre-training read its corpus so often: Devlin et al. 2019, arXiv:1810.04805, appendix A.2


def lines(profile: str | None, rate: Rate) -> Iterator[str]:
    """The lines of the page. Raises PruneOnceError at the first thing that does not fit."""
    yield from page(planned.plan(profile, rate))


def page(found: Plan) -> Iterator[str]:
    """The lines of the page of a plan."""
    p = found.p
    yield f"{found.name}: {p.report.title}"
    yield from ("", f"Tasks: {' '.join(p.tasks)}", "Stages, and the stages that each one reads:", *graph(found.document))
    yield from ("", *_model(p, found.model.shape, found.entries))
    yield from ("", *_data(found))
    yield from ("", *_training(found.work, found.rate))
    yield from ("", *_files(p, found.model.shape))
    yield from (f"warning: {line}" for line in warnings(found))


def warnings(found: Plan) -> list[str]:
    """What was not checked, and what may be a mistake."""
    return [*_unchecked(found.p, found.sources), *_warnings(found.p, found.work, found.corpus, found.rows)]


def graph(document: Mapping[str, Any]) -> list[str]:
    """The stages of dvc.yaml in its order, each with what it runs for and the stages whose outs it reads."""
    written: dict[str, list[str]] = {}
    rows: list[list[str]] = []
    for name, entry in read_yaml(Path("dvc.yaml"))["stages"].items():
        each = entry.get("foreach", "").strip("${}")
        block = entry.get("do", entry)
        read = _stems(block.get("deps", []))
        after = [other for other, outs in written.items() if any(meet(a, b) for a in read for b in outs)]
        if not each or document[each]:
            written[name] = _stems([*block.get("outs", []), *block.get("metrics", []), *block.get("plots", [])])
            many = {"": "once", "tasks": "for each task"}.get(each, "for each source")
            rows.append([name, many, " ".join(after)])
    return _table(rows)


def _stems(entries: Sequence[Any]) -> list[str]:
    """The paths up to the part that DVC fills in for an item."""
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [stem for path in paths if (stem := path.split("${")[0].rstrip("/"))]


def _model(p: Params, s: Shape, entries: Sequence[matrices.Matrices]) -> Iterator[str]:
    chosen = [m for m in entries if m.prunable == "yes"]
    pruned = sum(m.count * masks.pruned_count(p.sparsify.sparsity, m.weights // m.count) for m in chosen)
    pooler = sum(m.weights for m in chosen if m.name.startswith("pooler."))
    yield (
        f"Model {p.common.model}: {s.layers} layers of {s.hidden:,}, feed-forward {s.feed_forward:,}, {s.heads} heads, "
        f"{s.positions} positions"
    )
    yield (
        f"{_si(s.parameters)} parameters; prunable: {_weights(s.prunable - pooler)} in the layers"
        + (f", {_weights(pooler)} in the pooler" if pooler else "")
        + f"; at {100 * p.sparsify.sparsity:g} % {_weights(sum(m.weights for m in chosen) - pruned)} stay"
    )
    yield from (f"  {line}" for line in matrices.table(entries).splitlines())


def _data(found: Plan) -> Iterator[str]:
    table = [["source", "splits", "rows", "bytes", "known"]]
    for name, source in found.sources.items():
        size = "" if source.bytes is None else _bytes(source.bytes)
        counts = planned.counts(found, source)
        rows = " ".join("?" if count is None else f"{count:,}" for count in counts.values())
        table.append([name, " ".join(counts) or ("?" if source.names is None else "(model)"), rows, size, source.known])
    yield from _table(table)
    tokens = costs.corpus_tokens(found.p, found.corpus)
    if tokens:
        disk = _bytes(4 * tokens)  # int32
        yield f"Corpus: about {_si(tokens)} tokens in blocks of {found.p.prepare_corpus.block_tokens}, {disk} on disk"


def _training(work: Sequence[Work], rate: Rate) -> Iterator[str]:
    rows = [["stage that trains", "steps", "tokens", "FLOPs", "rows x tokens", "memory", "hours"]]
    for w in work:
        row = [w.name, f"{w.steps:,}", _si(w.tokens), _si(w.flops), f"{w.rows} x {w.length}", _bytes(w.memory["peak"])]
        rows.append([*row, _hours(rate.seconds(w))])
    seconds = [second for w in work if (second := rate.seconds(w)) is not None]
    total = _hours(sum(seconds) if any(seconds) else None)
    rows.append(["all", "", _si(sum(w.tokens for w in work)), _si(sum(w.flops for w in work)), "", "", total])
    yield from _table(rows)
    yield "Tokens: an upper bound, with every row at its full length."
    yield "Rows x tokens: on one device at a time. Memory: the peak of one device."
    if any(math.isnan(w.flops) for w in work):
        yield "FLOPs: not known. This model's code reads values of its input, and the plan has none."
    most = max(work, key=lambda w: w.memory["peak"])
    parts = ", ".join(f"{key} {_bytes(value)}" for key, value in most.memory.items() if key != "peak")
    yield f"Parts of the highest peak, {most.name}, not all at once:"
    yield f"  {parts}"
    if rate.tflops or rate.tokens:
        speed = f"{rate.tflops:g} model TFLOP/s" if rate.tflops else f"{rate.tokens:,.0f} tokens/s"
        yield f"Hours: training alone; GPUs: {rate.gpus}, each {speed}"
    else:
        yield "Hours: not known; give --tflops or --tokens-per-second"


def _files(p: Params, s: Shape) -> Iterator[str]:
    sizes = step_costs.file_bytes(s)
    yield "Files of one model: " + ", ".join(f"{key} {_bytes(value)}" for key, value in sizes.items())
    a_task = 3 * sizes["checkpoint"] + 2 * sizes["ONNX fp32"] + sizes["ONNX int8"]
    yield f"All models of the pipeline: {_bytes(3 * sizes['checkpoint'] + len(p.tasks) * a_task)}"


def _unchecked(p: Params, sources: Mapping[str, Source]) -> Iterator[str]:
    """Sources of rows that were not checked: no files at hand, and no `expects`."""
    tasks: list[Any] = [p.section("prepare_task", task) for task in p.tasks]
    for name in sorted({each.source for each in (*tasks, *p.prepare_corpus.documents)}):
        source = sources[name]
        if not source.files and not source.expects:
            parts = "columns and rows" if source.names is not None else "splits, columns and rows"
            yield f"source {name}: not fetched yet; its {parts} were not checked"


def _warnings(
    p: Params, work: Sequence[Work], corpus: float | None, training_rows: Mapping[str, int | None]
) -> Iterator[str]:
    tokens = costs.corpus_tokens(p, corpus)
    for w in work:
        if tokens and "@" not in w.name and w.rows * w.length > tokens:
            yield f"{w.name}: the corpus has about {tokens:.0f} tokens, one device takes {w.rows * w.length} at a time"
        if tokens and "@" not in w.name and w.tokens > MANY_TIMES * tokens:
            yield f"{w.name}: reads the corpus {w.tokens / tokens:.0f} times; BERT read its own {MANY_TIMES} times"
        if w.uneven:
            yield f"{w.name}: batch_size is no multiple of micro_batches x GPUs: pieces differ in size"
    for task, count in training_rows.items():
        section: Any = p.section("prepare_task", task)
        if count is None:
            yield f"task {task}: not in the table; its rows are known once they are fetched"
        elif count < (batch := max(p.section(stage, task).batch_size for stage in costs.TRAINING_STAGES)):  # type: ignore[attr-defined]
            yield f"task {task}: has {count} rows to train on, a batch takes {batch}"
        elif section.kind == "question_answering":
            yield f"task {task}: steps are counted by questions; a long context gives several rows"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows, the first of which is the header, as indented lines. Columns of numbers are aligned right."""
    numbers = [all(cell[:1].isdigit() or not cell for cell in column[1:]) for column in zip(*rows, strict=True)]
    sides = ["right" if number else "left" for number in numbers]
    text = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides)
    return [f"  {line}" for line in text.splitlines()]


def _si(value: float) -> str:
    """Three digits and a prefix: 1.31e10 -> "13.1 G"; nothing for nan."""
    if math.isnan(value):
        return ""
    for prefix, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            digits = value / size
            return f"{digits:.0f} {prefix}" if digits >= 99.95 else f"{digits:.1f} {prefix}"
    return f"{value:.0f} "


def _bytes(value: float) -> str:
    return f"{_si(value)}B"


def _weights(count: int) -> str:
    """In millions with two digits, as the paper counts them; of a small model in thousands."""
    return f"{count / 1e6:.2f} M" if count >= 1e6 else _si(count)


def _hours(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return ""
    return f"{seconds / 3600:.2f}" if seconds < 36000 else f"{seconds / 3600:.0f}"
