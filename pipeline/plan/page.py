"""What a profile would cost, on a page: nothing is trained, nothing is fetched, nothing is written.

The profile is checked against the configuration of its model and what its sources hold. Then: the graph of stages, the
prunable matrices, the data, and for every stage that trains its steps, tokens, FLOPs, memory and time.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.params import profiles
from pipeline.params.document import Params, parse
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.plan import costs
from pipeline.plan.costs import Rate, Work
from pipeline.plan.inventory import Source, source
from pruneonce.errors import ModelError
from pruneonce.models import matrices, step_costs
from pruneonce.models.step_costs import Shape
from pruneonce.sparsity import masks

MANY_TIMES = 40  # what BERT's own pre-training saw of its corpus: Devlin et al. 2019, arXiv:1810.04805, appendix A.2


def lines(profile: str | None, rate: Rate) -> Iterator[str]:
    """The page. Raises PruneOnceError at the first thing that does not fit."""
    here = profiles.current()  # for every profile: dvc.yaml and the sources are beside it
    name = f"{profiles.FOLDER}/{profile}.yaml" if profile not in (None, "default") else str(profiles.PARAMS)
    text = here if profile is None else profiles.read(profile)
    document = parse_yaml(text, name)
    p = parse(document, name)
    model, s = _built(p)
    p.check_lengths(s.positions)
    sources = {each: source(each, p) for each in sorted(p.sources())}
    training_rows = {task: costs.rows_of(task, p, sources) for task in p.tasks}
    corpus = costs.corpus_bytes(p, sources)
    work = [*costs.pre_training(p, s, rate.gpus), *costs.task_training(p, s, rate.gpus, training_rows)]

    yield f"{name}: {p.report.title}"
    yield from ("", f"Tasks: {' '.join(p.tasks)}", "Stages, each after those on the right", *graph(document))
    yield from ("", *_model(p, s, matrices.matrices(model, p.sparsify.prunable)))
    yield from ("", *_data(p, sources, corpus))
    yield from ("", *_training(work, rate))
    yield from ("", *_files(p, s))
    yield from (f"warning: {line}" for line in [*_unchecked(p, sources), *_warnings(p, work, corpus, training_rows)])


def _built(p: Params) -> tuple[Any, Shape]:
    """The model, without its weights, and its shape. Raises ModelError, which says whose configuration is meant."""
    facts = source(p.common.model, p).facts()
    try:
        model = step_costs.build(facts, next_sentence=p.prepare_corpus.next_sentence)
        return model, step_costs.shape(model, masks.prunable(model, p.sparsify.prunable))
    except ModelError as error:
        raise ModelError(f"config.json of source {p.common.model!r}: {error}") from None


def graph(document: Mapping[str, Any]) -> list[str]:
    """The stages of dvc.yaml in its order: what each runs for, and the stages whose outs it reads."""
    written: dict[str, list[str]] = {}
    rows: list[list[str]] = []
    for name, entry in read_yaml(Path("dvc.yaml"))["stages"].items():
        each = entry.get("foreach", "").strip("${}")
        block = entry.get("do", entry)
        read = _stems(block.get("deps", []))
        after = [other for other, outs in written.items() if any(_meet(a, b) for a in read for b in outs)]
        if not each or document[each]:
            written[name] = _stems([*block.get("outs", []), *block.get("metrics", []), *block.get("plots", [])])
            many = {"": "once", "tasks": "for each task"}.get(each, "for each source")
            rows.append([name, many, " ".join(after)])
    return _table(rows)


def _stems(entries: Sequence[Any]) -> list[str]:
    """Paths up to what is filled in for an item."""
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [stem for path in paths if (stem := path.split("${")[0].rstrip("/"))]


def _meet(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _model(p: Params, s: Shape, found: Sequence[matrices.Matrices]) -> Iterator[str]:
    chosen = [m for m in found if m.prunable == "yes"]
    kept = sum(
        m.count * (size - masks.pruned_count(p.sparsify.sparsity, size)) for m in chosen for size in [m.weights // m.count]
    )
    pooler = sum(m.weights for m in chosen if m.name.startswith("pooler."))
    yield (
        f"Model {p.common.model}: {s.layers} layers of {s.hidden:,}, feed-forward {s.feed_forward:,}, {s.heads} heads, "
        f"{s.positions} positions"
    )
    yield (
        f"{_si(s.parameters)} parameters; prunable: {_weights(s.prunable - pooler)} in the layers"
        + (f", {_weights(pooler)} in the pooler" if pooler else "")
        + f"; at {100 * p.sparsify.sparsity:g} % {_weights(kept)} are kept"
    )
    yield from (f"  {line}" for line in matrices.table(found).splitlines())


def _data(p: Params, sources: Mapping[str, Source], corpus: float | None) -> Iterator[str]:
    table = [["source", "splits", "rows", "bytes", "known"]]
    for name, of in sources.items():
        size = "" if of.bytes is None else _bytes(of.bytes)
        wanted: dict[str, tuple[str, int]] = {}
        for task in p.tasks:
            section: Any = p.section("prepare_task", task)
            if section.source == name:
                splits = {*costs.SPLITS, *section.further_tests}
                wanted |= {split: (section.text, section.skip_rows) for split in of.splits() if split in splits}
        wanted |= {d.split: (d.column, d.skip_rows) for d in p.prepare_corpus.documents if d.source == name}
        counts = {split: of.rows(split, [column], skip_rows=skip) for split, (column, skip) in wanted.items()}
        rows = " ".join("?" if count is None else f"{count:,}" for count in counts.values())
        table.append([name, " ".join(counts) or ("?" if of.names is None else "(model)"), rows, size, of.known])
    yield from _table(table)
    tokens = costs.corpus_tokens(p, corpus)
    if tokens:
        disk = _bytes(4 * tokens)  # int32
        yield f"Corpus: about {_si(tokens)} tokens in blocks of {p.prepare_corpus.block_tokens}, {disk} on the disk"


def _training(work: Sequence[Work], rate: Rate) -> Iterator[str]:
    header = ["stage that trains", "steps", "tokens", "FLOPs", "rows x tokens", "a device", "hours"]
    rows = [
        [
            w.name,
            f"{w.steps:,}",
            _si(w.tokens),
            _si(w.flops),
            f"{w.rows} x {w.length}",
            _bytes(w.memory["peak"]),
            _hours(rate.seconds(w)),
        ]
        for w in work
    ]
    seconds = [rate.seconds(w) for w in work]
    whole = _hours(sum(second for second in seconds if second is not None) if any(seconds) else None)
    total = ["all", "", _si(sum(w.tokens for w in work)), _si(sum(w.flops for w in work)), "", "", whole]
    yield from _table([header, *rows, total])
    yield "Tokens: at most, every row as long as it may be. Rows x tokens: of a device, at a time."
    most = max(work, key=lambda w: w.memory["peak"])
    parts = ", ".join(f"{key} {_bytes(value)}" for key, value in most.memory.items() if key != "peak")
    yield f"Of it in {most.name}, at times: {parts}"
    if rate.tflops or rate.tokens:
        speed = f"{rate.tflops:g} model TFLOP/s" if rate.tflops else f"{rate.tokens:,.0f} tokens/s"
        yield f"Hours: at {speed} a GPU, {rate.gpus} in all; of the training alone"
    else:
        yield "Hours: ask with --tflops or --tokens-per-second, and --gpus"


def _files(p: Params, s: Shape) -> Iterator[str]:
    sizes = step_costs.checkpoint_bytes(s)
    yield "Files: " + ", ".join(f"{key} {_bytes(value)}" for key, value in sizes.items())
    a_task = 3 * sizes["checkpoint"] + 2 * sizes["ONNX fp32"] + sizes["ONNX int8"]
    yield f"All that is kept: {_bytes(3 * sizes['checkpoint'] + len(p.tasks) * a_task)} of models, tasks: {len(p.tasks)}"


def _unchecked(p: Params, sources: Mapping[str, Source]) -> Iterator[str]:
    """What this page does not vouch for: sources of rows that are neither here nor known from `expects`."""
    tasks: list[Any] = [p.section("prepare_task", task) for task in p.tasks]
    for name in sorted({each.source for each in (*tasks, *p.prepare_corpus.documents)}):
        of = sources[name]
        if not of.files and not of.expects:
            what = "columns and rows" if of.names is not None else "splits, columns and rows"
            yield f"source {name} is not fetched yet: its {what} were not checked"


def _warnings(
    p: Params, work: Sequence[Work], corpus: float | None, training_rows: Mapping[str, int | None]
) -> Iterator[str]:
    tokens = costs.corpus_tokens(p, corpus)
    for w in work:
        if tokens and "@" not in w.name and w.rows * w.length > tokens:
            yield f"{w.name}: the corpus has about {tokens:.0f} tokens, and a batch of one device takes {w.rows * w.length}"
        if tokens and "@" not in w.name and w.tokens > MANY_TIMES * tokens:
            yield f"{w.name} sees the corpus {w.tokens / tokens:.0f} times; BERT's own pre-training about {MANY_TIMES} times"
        if w.uneven:
            yield f"{w.name}: the batch does not divide by pieces and GPUs; some get fewer rows than {w.rows}"
    for task, count in training_rows.items():
        section: Any = p.section("prepare_task", task)
        if count is None:
            yield f"task {task}: its rows are not known before they are fetched; it is not in the table"
        elif count < (batch := max(p.section(stage, task).batch_size for stage in costs.TASK_STAGES)):  # type: ignore[attr-defined]
            yield f"task {task}: it has {count} rows to train on, and a batch takes {batch}"
        elif section.kind == "question_answering":
            yield f"task {task}: steps count questions; a context of several windows makes as many rows"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    number = [all(row[i][:1].isdigit() or not row[i] for row in rows[1:]) for i in range(len(widths))]
    cells = [[f"{c:>{w}}" if n else f"{c:<{w}}" for c, w, n in zip(row, widths, number, strict=True)] for row in rows]
    return ["  " + "  ".join(row).rstrip() for row in cells]


def _si(value: float) -> str:
    """Three digits and a prefix: 1.31e10 -> "13.1 G"."""
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
    return "" if seconds is None else f"{seconds / 3600:.2f}" if seconds < 36000 else f"{seconds / 3600:.0f}"
