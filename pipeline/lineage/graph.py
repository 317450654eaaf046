"""The stages behind a file as a graph. It crosses lock files: what one does not have any more, an older one may have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.lineage.history import NONE, History, Version
from pipeline.tracking.lock import Stage, makers, meet

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(eq=False)
class Node:
    """A stage that ran. reads: path of a dep -> the stages that made it. lost: deps that no lock file knows the maker of.

    stated: it stands in no lock file; a file said so of itself, or an MLflow run did."""

    stage: Stage
    version: Version
    reads: dict[str, list["Node"]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    stated: bool = False

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def inputs(self) -> list["Node"]:
        """The stages that it reads from, each once."""
        return list(dict.fromkeys(node for nodes in self.reads.values() for node in nodes))


def is_code(path: str) -> bool:
    """Whether a dep is code: as `lock.code`, what lies in no folder `data`, by its path alone."""
    return "data" not in path.split("/")


class Graph:
    """Nodes by what they wrote, so that a stage that several lock files have in the same way is one node."""

    def __init__(self, history: History):
        self.history = history
        self.nodes: dict[Key, Node] = {}

    def node(self, stage: Stage, version: Version) -> Node:
        """The node of a stage, with all that is behind it."""
        waiting = [first := self._new(stage, version)]
        while waiting:
            node = waiting.pop()
            if not node.reads and not node.lost:
                waiting += self._read(node)
        return first

    def stated(self, stage: Stage) -> Node:
        """The node of a stage that stands in no lock file; its deps are looked up in them."""
        node = Node(stage, NONE, stated=True)
        for dep in self._read(node):
            self.node(dep.stage, dep.version)
        return node

    def _new(self, stage: Stage, version: Version) -> Node:
        key = (stage.name, tuple(sorted(stage.outs.items())))
        return self.nodes.setdefault(key, Node(stage, version))

    def _read(self, node: Node) -> list[Node]:
        """Find what made its deps; returns the nodes that are to be followed."""
        own = node.version
        for path, md5 in node.stage.deps.items():
            made = [(own, stage) for stage in makers(path, md5, own.stages, own.now)]
            known = any(meet(out, path) for stage in own.stages.values() for out in stage.outs)
            if not made and (known or (node.stated and not is_code(path))):
                found = self.history.made(md5, path)
                made = [found[:2]] if found else []
                if not found:
                    node.lost.append(path)
            others = [self._new(stage, version) for version, stage in made if stage.name != node.name]
            if others:
                node.reads[path] = others
        return node.inputs


def behind(roots: Sequence[Node]) -> list[Node]:
    """The roots and all nodes behind them, each once, roots first."""
    seen: dict[Node, None] = {}
    waiting = list(reversed(roots))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting += reversed(node.inputs)
    return list(seen)


def reduced(roots: Sequence[Node]) -> dict[Node, list[Node]]:
    """Node -> its inputs without those that another input of it has behind itself: a tree of them is short."""
    nodes = behind(roots)
    beyond = _beyond(nodes)
    return {
        node: [one for one in node.inputs if not any(one in beyond[other] for other in node.inputs if other is not one)]
        for node in nodes
    }


def _beyond(nodes: Sequence[Node]) -> Mapping[Node, set[Node]]:
    """Node -> all nodes behind it, without itself."""
    return {node: set(behind(node.inputs)) - {node} for node in nodes}


def ids(nodes: Sequence[Node]) -> dict[Node, str]:
    """Node -> its name; with the commit where several have it."""
    names = [node.name for node in nodes]
    return {
        node: node.name if names.count(node.name) == 1 else f"{node.name} ({node.version.commit[:9] or 'dvc.lock'})"
        for node in nodes
    }


def walk(roots: Sequence[Node], below: Mapping[Node, list[Node]], seen: set[Node]) -> Iterator[tuple[Node, str, str, bool]]:
    """(node, the strokes before it, the strokes before what belongs to it, whether it came already), depth first.

    Of a node that came already nothing below is given.
    """

    def one(node: Node, indent: str, last: bool) -> Iterator[tuple[Node, str, str, bool]]:
        again = node in seen
        seen.add(node)
        inner = indent + ("   " if last else "│  ")
        yield node, f"{indent}{'└─' if last else '├─'} ", inner, again
        children = [] if again else below.get(node, [])
        for child in children:
            yield from one(child, inner, child is children[-1])

    for root in roots:
        yield from one(root, "", root is roots[-1])
