"""A lineage as JSON, and as a Mermaid graph for a page. docs/lineage.md describes the JSON."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.lineage.facts import Facts, source_of
from pipeline.lineage.graph import Node, behind, ids, is_code, reduced
from pipeline.lineage.lookup import Subject

FORMAT = 1


def document(subjects: Sequence[Subject], facts: Facts) -> dict[str, Any]:
    """All that `--full` prints, and more."""
    nodes = behind([root for subject in subjects for root in subject.roots])
    names = ids(nodes)
    return {
        "format": FORMAT,
        "subjects": [
            {
                "says": subject.says,
                "md5": subject.md5 or None,
                "path": subject.path or None,
                "commit": subject.version.commit or None,
                "about": subject.about or None,
                "made_by": [names[root] for root in subject.roots],
            }
            for subject in subjects
        ],
        "stages": [_stage(node, names, facts) for node in nodes],
        "mlflow": facts.problem or None,
    }


def _stage(node: Node, names: Mapping[Node, str], facts: Facts) -> dict[str, Any]:
    runs = None if facts.problem else [_run(run) for run in facts.runs.get(node, ())]
    return {
        "id": names[node],
        "stage": node.name,
        "commit": node.version.commit or None,
        "in_lock_file": not node.stated,
        "runs": runs,
        "results": facts.numbers(node),
        "source": source_of(node),
        "params": node.stage.params,
        "deps": [
            {
                "path": path,
                "md5": md5,
                "code": is_code(path),
                "made_by": [names[maker] for maker in node.reads.get(path, ())],
                "lost": path in node.lost,
            }
            for path, md5 in node.stage.deps.items()
        ],
        "outs": [{"path": path, "md5": md5} for path, md5 in node.stage.outs.items()],
    }


def _run(run: Any) -> dict[str, Any]:
    commit, dirty = run.tags.get("mlflow.source.git.commit"), run.tags.get("pruneonce.dirty")
    return {"id": run.id, "commit": commit, "clean": None if dirty is None else dirty == "false", "seconds": run.seconds}


def mermaid(subjects: Sequence[Subject], facts: Facts) -> Iterator[str]:
    """A graph from the sources to the files, between the fences that Markdown pages need."""
    roots = [root for subject in subjects for root in subject.roots]
    nodes = behind(roots)
    numbers = {node: f"s{number}" for number, node in enumerate(nodes)}
    below = reduced(roots)
    yield "```mermaid"
    yield "graph TD"
    for node in nodes:
        words = [node.name, facts.summary(node), facts.run(node)]
        yield f'  {numbers[node]}["{"<br/>".join(_plain(word) for word in words if word)}"]'
    for node in nodes:
        yield from (f"  {numbers[one]} --> {numbers[node]}" for one in below[node])
    for number, subject in enumerate(subjects):
        words = [subject.path or subject.says[0], subject.md5 and f"md5 {subject.md5}"]
        yield f'  f{number}(["{"<br/>".join(_plain(word) for word in words if word)}"])'
        yield from (f"  {numbers[root]} --> f{number}" for root in subject.roots)
    yield "```"


def _plain(text: str) -> str:
    """Text for a label: a quote would end it."""
    return re.sub(r'["<>`]', "'", text)
