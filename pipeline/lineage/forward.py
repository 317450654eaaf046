"""What was made from a file: the stages that read it, and those that read what they made, by all lock files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.lineage.graph import Node
from pipeline.lineage.history import History, Version, readers
from pipeline.lineage.identify import INT8
from pipeline.lineage.lookup import Subject

if TYPE_CHECKING:
    from pipeline.tracking.asked import Registered


@dataclass
class Made:
    """What was made from a subject. now: by dvc.lock. before: by lock files of commits, without what dvc.lock has too."""

    subject: Subject
    now: dict[Node, list[Node]] = field(default_factory=dict)  # stage -> the stages that read what it made
    first: list[Node] = field(default_factory=list)  # of `now`, those that read the subject itself
    before: list[Node] = field(default_factory=list)
    registered: list["Registered"] = field(default_factory=list)


def of(subject: Subject, history: History) -> Made:
    """Everything behind which the subject stands. Without the registered versions: MLflow knows them."""
    made = Made(subject)
    files = {subject.path: subject.md5} if subject.path else dict(subject.roots[0].stage.outs) if subject.roots else {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for md5 in dict.fromkeys(files.values()):
        for version in history.versions(md5):
            if not any(recorded in files.values() for _, _, recorded in version.outs()):
                continue
            first, below = _below(version, files)
            fresh = {n: v for n, v in below.items() if _key(n) not in seen}
            seen |= {_key(node) for node in fresh}
            if version.commit:
                made.before += [node for node in fresh if node.name in version.now]
            else:
                made.now, made.first = made.now | below, list(dict.fromkeys([*made.first, *first]))
    return made


def _key(node: Node) -> tuple[str, tuple[str, ...]]:
    return node.name, tuple(sorted(node.stage.outs.values()))


def _below(version: Version, files: dict[str, str]) -> tuple[list[Node], dict[Node, list[Node]]]:
    """(the current stages that read the files, all stages below them -> those that read what they made)."""
    nodes = {name: Node(stage, version) for name, stage in version.stages.items() if name in version.now}

    def reading(outs: dict[str, str]) -> list[Node]:
        found = {stage.name for path, md5 in outs.items() for stage in readers(version, path, md5)}
        return [node for name, node in nodes.items() if name in found]

    first = reading(files)
    below: dict[Node, list[Node]] = {}
    waiting = list(first)
    while waiting:
        node = waiting.pop()
        if node not in below:
            below[node] = [one for one in reading(node.stage.outs) if one is not node]
            waiting += below[node]
    return first, below


def md5s(made: Made) -> set[str]:
    """Of everything that was made, and of the subject."""
    nodes = [*made.now, *made.before]
    return {made.subject.md5, *(md5 for node in nodes for md5 in node.stage.outs.values())} - {""}


def lines(made: Made, *, full: bool) -> Iterator[str]:
    """A tree of what dvc.lock has, then the models that only older lock files have, then the registered versions.

    full: also the studies, and every stage of older lock files.
    """
    yield from made.subject.says
    if not (made.now or made.before or made.registered):
        yield "nothing was made from it, as far as the lock files of all commits and the registry say"
        return
    shown = {node for node in made.now if full or not _of_study(node)}
    yield from _tree(made, _nearest(made, made.first), "", shown, set())
    if studies := len(made.now) - len(shown):
        yield f"and {studies} stages of the studies (see --full)"
    outs = [(node, path) for node in made.before for path in node.stage.outs if full or path.endswith(f"/{INT8}")]
    yield from (f"earlier     {path}  md5 {node.stage.outs[path]}  in {node.version.name}" for node, path in outs)
    if others := len(made.before) - len({node for node, _ in outs}):
        yield f"earlier     {others} other runs of stages, in the lock files of older commits (see --full)"
    yield from (f"registered  {found.name}  md5 {found.tags.get('md5')}" for found in made.registered)


def _of_study(node: Node) -> bool:
    return all(path.startswith("study/") for path in node.stage.outs)


def _tree(made: Made, nodes: Sequence[Node], indent: str, shown: set[Node], seen: set[Node]) -> Iterator[str]:
    nodes = [node for node in nodes if node in shown]
    for node in nodes:
        last = node is nodes[-1]
        outs = ", ".join(path for path in node.stage.outs if not {"metrics", "plots"} & set(path.split("/")))
        again = node in seen
        seen.add(node)
        yield f"{indent}{'└─' if last else '├─'} {node.name}  {'(above)' if again else outs}".rstrip()
        if not again:
            yield from _tree(made, _nearest(made, made.now[node]), indent + ("   " if last else "│  "), shown, seen)


def _nearest(made: Made, nodes: Sequence[Node]) -> list[Node]:
    """The stages that none of the others leads to: those come below them."""

    def beyond(node: Node) -> set[Node]:
        found: set[Node] = set()
        waiting = list(made.now[node])
        while waiting:
            below = waiting.pop()
            if below not in found:
                found.add(below)
                waiting += made.now[below]
        return found

    behind = {node: beyond(node) for node in nodes}
    return [node for node in nodes if not any(node in behind[other] for other in nodes if other is not node)] or list(nodes)


def mermaid(made: Made) -> Iterator[str]:
    """What dvc.lock has, as a graph for a page, without the studies."""
    numbers = {node: f"s{number}" for number, node in enumerate(made.now) if not _of_study(node)}
    yield from ("```mermaid", "graph TD", f'  f0(["{made.subject.path or made.subject.says[0]}"])')
    yield from (f'  {number}["{node.name}"]' for node, number in numbers.items())
    yield from (f"  f0 --> {numbers[node]}" for node in _nearest(made, made.first) if node in numbers)
    for node, number in numbers.items():
        yield from (f"  {number} --> {numbers[one]}" for one in _nearest(made, made.now[node]) if one in numbers)
    yield "```"


def document(made: Made) -> dict[str, Any]:
    """`lines` as data."""

    def stage(node: Node) -> dict[str, Any]:
        return {"stage": node.name, "commit": node.version.commit or None, "outs": node.stage.outs}

    return {
        "subject": {"md5": made.subject.md5 or None, "path": made.subject.path or None, "says": made.subject.says},
        "stages": [{**stage(node), "read_by": [below.name for below in made.now[node]]} for node in made.now],
        "earlier": [stage(node) for node in made.before],
        "registered": [
            {"model": r.model, "version": r.version, "aliases": list(r.aliases), "md5": r.tags.get("md5")}
            for r in made.registered
        ],
    }
