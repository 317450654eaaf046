"""Print the stages of dvc.yaml as a Mermaid flowchart. An arrow that follows from the others is left out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
from ruamel.yaml import YAML

LOCAL_FETCH = "fetch_local"  # left out: it writes the same folders as fetch, from files of this machine


def stages() -> dict[str, Any]:
    """Stage -> its block in dvc.yaml, and under the key `task` whether it runs for each task."""
    blocks = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
    del blocks[LOCAL_FETCH]
    return {name: {**block.get("do", block), "task": block.get("foreach") == "${tasks}"} for name, block in blocks.items()}


def stems(entries: list[Any]) -> list[str]:
    """The paths of the entries, up to the part that DVC fills in for each item."""
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [f"{path.split('${')[0].rstrip('/')}/" for path in paths]


def arrows(blocks: dict[str, Any]) -> networkx.DiGraph:
    """Arrows from a stage to the stages that read its outs, without those that follow from other arrows."""
    graph = networkx.DiGraph()
    for name, block in blocks.items():
        for other, earlier in blocks.items():
            outs = stems([*earlier["outs"], *earlier.get("metrics", [])])
            if other != name and any(a.startswith(b) or b.startswith(a) for a in stems(block["deps"]) for b in outs):
                graph.add_edge(other, name)
    return networkx.transitive_reduction(graph)


def lines() -> Iterator[str]:
    """The chart: one box for what runs once, one for what runs for each task."""
    blocks = stages()
    yield "```mermaid"
    yield "flowchart LR"
    for title, task in (("once", False), ("for each task", True)):
        yield f'  subgraph {title.split()[0]}["{title}"]'
        yield from (f"    {name}" for name, block in blocks.items() if block["task"] is task and name != "report")
        yield "  end"
    order = {name: number for number, name in enumerate(blocks)}
    yield from (f"  {a} --> {b}" for a, b in sorted(arrows(blocks).edges, key=lambda edge: (order[edge[0]], order[edge[1]])))
    yield "```"


if __name__ == "__main__":
    print(*lines(), sep="\n")
