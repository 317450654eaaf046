"""The graph of the stages that led to the report, out of dvc.lock, laid out as an SVG: sources above, the report below."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import networkx as nx

from pipeline.tracking import lock
from pipeline.tracking.lock import Stage

WIDTH, HEIGHT, GAP, LAYER = 168, 46, 14, 84  # of a box, between boxes, between the tops of two layers
SWEEPS = 4  # of ordering each layer by the places of its neighbours


@dataclass(frozen=True)
class Node:
    """A stage and where its box stands."""

    stage: Stage
    x: float
    y: float

    @property
    def data(self) -> dict[str, str]:
        """What it wrote, but metrics and plots: path -> md5."""
        apart = (Path("data/metrics"), Path("data/plots"), Path("data/latency"), Path("data/answers"))
        found = {p: md5 for p, md5 in self.stage.outs.items() if not any(Path(p).is_relative_to(a) for a in apart)}
        return found or self.stage.outs

    @property
    def reads(self) -> dict[str, str]:
        """The data it read: path -> md5."""
        return {path: md5 for path, md5 in self.stage.deps.items() if path.startswith("data/")}

    @property
    def code_files(self) -> int:
        """The number of its deps that are code, or files of the user's."""
        return len(self.stage.deps) - len(self.reads)


@dataclass(frozen=True)
class Drawing:
    """Boxes and arrows. edges: the two ends of each arrow, as (x, y, x, y)."""

    nodes: list[Node]
    edges: list[tuple[float, float, float, float]]
    width: float
    height: float


def graph(stages: Mapping[str, Stage], tasks: Collection[str]) -> nx.DiGraph:
    """The stages that the scores of these tasks come from, with an edge from each to those that read what it wrote.

    An edge that a longer way implies is left out. Empty if dvc.lock has no evaluation of these tasks.
    """
    found, waiting = nx.DiGraph(), [name for task in tasks if (name := f"evaluate@{task}") in stages]
    while waiting:
        name = waiting.pop()
        if name in found and found.nodes[name].get("seen"):
            continue
        found.add_node(name, seen=True)
        for path, md5 in stages[name].deps.items():
            for maker in lock.makers(path, md5, stages, stages):
                found.add_edge(maker.name, name)
                waiting.append(maker.name)
    return nx.transitive_reduction(found)


def draw(stages: Mapping[str, Stage], tasks: Collection[str]) -> Drawing:
    """Layers from the sources down; inside a layer a stage stands near its neighbours."""
    reduced = graph(stages, tasks)
    layers = [sorted(layer) for layer in nx.topological_generations(reduced)]
    for _ in range(SWEEPS):
        for above, layer in pairwise(layers):
            _near(layer, {name: i / len(above) for i, name in enumerate(above)}, reduced.predecessors)
        for below, layer in pairwise(reversed(layers)):
            _near(layer, {name: i / len(below) for i, name in enumerate(below)}, reduced.successors)
    widest = max(map(len, layers), default=0)
    width = widest * (WIDTH + GAP) + GAP
    nodes = {}
    for depth, layer in enumerate(layers):
        left = (width - len(layer) * (WIDTH + GAP) + GAP) / 2
        for i, name in enumerate(layer):
            nodes[name] = Node(stages[name], left + i * (WIDTH + GAP), GAP + depth * LAYER)
    ends = [(nodes[a], nodes[b]) for a, b in reduced.edges]
    edges = sorted((a.x + WIDTH / 2, a.y + HEIGHT, b.x + WIDTH / 2, b.y) for a, b in ends)
    return Drawing(list(nodes.values()), edges, width, len(layers) * LAYER - LAYER + HEIGHT + 2 * GAP)


def _near(layer: list[str], places: Mapping[str, float], neighbours) -> None:
    """Sort a layer by the mean place of each stage's neighbours in the layer beside it."""

    def place(name: str) -> float:
        found = [places[other] for other in neighbours(name) if other in places]
        return sum(found) / len(found) if found else layer.index(name) / len(layer)

    order = {name: place(name) for name in layer}
    layer.sort(key=lambda name: (order[name], name))
