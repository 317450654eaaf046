"""The tree behind a file as lines: short, or with every md5 and parameter. The sources come last."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.lineage.facts import Facts, source_of
from pipeline.lineage.graph import Node, behind, is_code, reduced, walk
from pipeline.lineage.history import Version
from pipeline.lineage.lookup import Subject
from pipeline.tracking.address import shown

GONE = "made by a run that no lock file has"


def short(subjects: Sequence[Subject], facts: Facts) -> Iterator[str]:
    """Every stage once, with its most important numbers and its run; then the sources with what pins them."""
    seen: set[Node] = set()
    for subject in subjects:
        yield from subject.says
        yield from scores(subject, facts)
        below = reduced(subject.roots)
        rows = [
            (f"{stroke}{node.name}", "(above)" if again else _about(node, subject.version, facts), inner, node, again)
            for node, stroke, inner, again in walk(subject.roots, below, seen)
        ]
        width = max((len(name) for name, *_ in rows), default=0) + 2
        for name, words, inner, node, again in rows:
            yield f"{name.ljust(width)}{words}".rstrip()
            yield from (f"{inner}{path}  {GONE}" for path in node.lost if not again)
        yield ""
    yield from sources([root for subject in subjects for root in subject.roots])
    if facts.problem:
        yield f"({facts.problem})"


def _about(node: Node, version: Version, facts: Facts) -> str:
    older = f"of {node.version.name}" if node.version.commit != version.commit and not node.stated else ""
    return ", ".join(filter(None, [facts.summary(node), facts.run(node), older]))


def sources(roots: Sequence[Node]) -> Iterator[str]:
    """Each package, repository or file with what pins it, once."""
    pinned: dict[tuple[str, str], None] = {}
    for node in behind(roots):
        if source := source_of(node):
            pinned[source["what"], _pin(source)] = None
    width = max((len(what) for what, _ in pinned), default=0)
    yield from (f"source {what.ljust(width)}  {pin}" for what, pin in sorted(pinned))


def _pin(source: Mapping[str, Any]) -> str:
    if "revision" in source:
        return f"revision {source['revision']}"
    if not source["sha256"] and source.get("md5"):
        return f"md5 {source['md5']} by dvc.lock; sha256 not pinned"
    return f"sha256 {source['sha256'] or 'not pinned'}"


def scores(subject: Subject, facts: Facts) -> Iterator[str]:
    """What `evaluate` measured of an exported file; no line if it did not read this file, or its numbers are gone."""
    variant = subject.path.rpartition("/")[2].removesuffix(".onnx")
    for stage in subject.version.stages.values():
        if subject.md5 and stage.name.startswith("evaluate@") and stage.deps.get(subject.path) == subject.md5:
            numbers = facts.numbers(Node(stage, subject.version))
            if f"{variant}.score" in numbers:
                score, zeros, size = (numbers[f"{variant}.{key}"] for key in ("score", "sparsity", "file_bytes"))
                yield f"scored {score:.4f} on the test split, {zeros:.1%} zeros, {size:,} bytes ({stage.name})"


def full(subjects: Sequence[Subject], facts: Facts) -> Iterator[str]:
    """Every stage with all its runs, outs, parameters and deps with their md5."""
    seen: set[Node] = set()
    for subject in subjects:
        yield from subject.says
        for node, stroke, inner, again in walk(subject.roots, {n: n.inputs for n in behind(subject.roots)}, seen):
            yield f"{stroke}{node.name}{'  (above)' if again else ''}"
            if not again:
                yield from (f"{inner}{line}" for line in _details(node, facts))
    if facts.problem:
        yield f"({facts.problem})"


def _details(node: Node, facts: Facts) -> Iterator[str]:
    if not facts.problem:
        runs = [run.id for run in facts.runs.get(node, ())]
        yield f"run     {', '.join(runs) or f'none in {shown()}: computed elsewhere, or its run was deleted'}"
    if node.version.commit:
        yield f"lock    {node.version.name}"
    yield from (f"out     {path}  {md5}" for path, md5 in node.stage.outs.items())
    yield from (f"params  {key}: {value}" for key, value in sorted(node.stage.params.items()))
    for path, md5 in node.stage.deps.items():
        yield f"{'code' if is_code(path) else 'dep '}    {path}  {md5}"
        if path in node.lost:
            yield f"        {GONE}"
