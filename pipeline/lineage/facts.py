"""What is known of a stage that ran: its numbers, its MLflow runs, and the source that a `fetch` stage names."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import dvc_settings
from pipeline.hashing import file_md5
from pipeline.lineage import git
from pipeline.lineage.graph import Node
from pipeline.lineage.places import OBJECTS, project_of
from pipeline.tracking.address import shown, sqlite_file, uri
from pruneonce.errors import TrackerUnreachable

if TYPE_CHECKING:
    from pipeline.tracking.asked import Run

# What a line of a tree says: key of the numbers -> words with it.
SAID = {
    "int8.score": "int8 {:.4f}",
    "dense.score": "dense {:.4f}",
    "int8.parity.same_decision": "int8 decides as PyTorch in {:.1%}",
    "validation_score": "validation {:.4f}",
    "held_out_loss": "held-out loss {:.3f}",
    "sparsity": "{:.1%} zeros",
    "train_tokens": "{:,} tokens",
    "train.rows": "{:,} rows to train on",
}


@dataclass
class Facts:
    """runs: the runs of each node that MLflow has. problem: why MLflow was not asked, or did not answer; else empty."""

    runs: Mapping[Node, Sequence["Run"]] = field(default_factory=dict)
    problem: str = ""

    def numbers(self, node: Node) -> dict[str, float]:
        """The numbers of the stage's metrics file if these very bytes are here, else of its run; names joined by dots."""
        found = _metrics(node)
        if not found and (runs := self.runs.get(node)):
            return dict(runs[0].results)
        return found

    def summary(self, node: Node) -> str:
        """The numbers that matter most, or the source, in a few words."""
        if source := source_of(node):
            return source["what"]
        numbers = self.numbers(node)
        return ", ".join(words.format(numbers[key]) for key, words in SAID.items() if key in numbers)

    def run(self, node: Node) -> str:
        """The newest run of a node in a few words; empty if MLflow was not asked."""
        if self.problem:
            return ""
        runs = self.runs.get(node)
        return f"run {runs[0].id[:8]}" if runs else "no run"


def gather(nodes: Sequence[Node]) -> Facts:
    """The runs that MLflow has of these nodes. Its store is not made only to be asked."""
    if no_store():
        return Facts(problem=f"no MLflow store at {shown()}: its runs are not shown")
    from pipeline.tracking import asked  # imports MLflow, which takes seconds

    try:
        return Facts(dict(zip(nodes, asked.computed([node.stage for node in nodes]), strict=True)))
    except TrackerUnreachable as error:
        return Facts(problem=f"MLflow's runs are unknown: {error}")


def no_store() -> bool:
    """Whether the MLflow store is a file that was not written yet."""
    file = sqlite_file(uri())
    return file is not None and not file.exists()


def _metrics(node: Node) -> dict[str, float]:
    for path, md5 in node.stage.outs.items():
        if path.endswith(".json") and ("metrics" in path.split("/") or path.endswith("metrics.json")):
            return _numbers(_content(path, md5, node.version.commit or "HEAD") or b"{}")
    return {}


def _numbers(text: bytes) -> dict[str, float]:
    def flat(value: Any, name: str) -> dict[str, float]:
        if isinstance(value, dict):
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}
        return {name: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}

    try:
        return flat(json.loads(text), "")
    except (ValueError, RecursionError):
        return {}


def _content(path: str, md5: str, commit: str) -> bytes | None:
    """The small file of this md5: from this folder, from DVC's cache, or from git; None if it is in none of them."""
    for place in (Path(path), dvc_settings.cache(project_of(path)) / OBJECTS / md5[:2] / md5[2:]):
        try:
            if place.is_file() and file_md5(place) == md5:
                return place.read_bytes()
        except OSError:
            continue
    found = git.blob(commit, path)
    return found if found is not None and hashlib.md5(found).hexdigest() == md5 else None


def source_of(node: Node) -> dict[str, Any] | None:
    """Where the files of a `fetch` stage come from, as its parameters say: what, and the checksum or revision that pins it.

    {"what": "numpy==2.0.0", "sha256": "..."}; of the hub "revision"; a local path has "md5", and "sha256" may be None.
    """
    for key, value in node.stage.params.items():
        section = key.partition(".")[0]
        if section not in ("fetch", "fetch_local") or not isinstance(value, Mapping):
            continue
        if "package" in value:
            return {"what": str(value["package"]), "sha256": value.get("sha256")}
        if "repository" in value:
            return {"what": f"hub {value.get('kind', '')} {value['repository']}", "revision": value.get("revision")}
        if "path" in value:
            md5 = node.stage.deps.get(str(value["path"]))  # what dvc.lock has of it
            return {"what": str(value["path"]), "sha256": value.get("sha256"), "md5": md5}
    return None
