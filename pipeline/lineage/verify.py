"""Recompute every checksum behind a file, wherever its bytes lie, and say of each link whether it holds."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.lineage import model_file, places
from pipeline.lineage.blocks import value_of
from pipeline.lineage.facts import source_of
from pipeline.lineage.graph import Node, behind, is_code
from pipeline.lineage.identify import Identify
from pipeline.lineage.lookup import Subject
from pipeline.lineage.places import Seen, State, Stores
from pipeline.params.reading import read_yaml
from pruneonce.errors import DataError, PackError

FORMAT = 1
NAMED = 5  # links that the error names


@dataclass(frozen=True)
class Link:
    """One checksum. kind: file, about, out, dep, code or source. stage: whose; empty for the file. note: where, what."""

    kind: str
    stage: str
    path: str
    expected: str
    state: State
    note: str


def links(asked: str) -> Iterator[Link]:
    """Every link behind what was asked about. Raises DataError where it is nothing that trace knows."""
    identify = Identify()
    subjects = identify.subjects(asked)
    check = _Check(identify)
    for subject in subjects:
        yield from check.subject(subject)
        if subject.registered:
            yield from _registered(subject)
    for node in behind([root for subject in subjects for root in subject.roots]):
        yield from check.node(node)


def _registered(subject: Subject) -> Iterator[Link]:
    """The model files in a registered version: their ONNX bytes have the md5 of its tag."""
    from pipeline.tracking import asked  # imports MLflow, which takes seconds

    assert subject.registered
    with tempfile.TemporaryDirectory() as folder:
        root = asked.download(subject.registered, Path(folder))
        for file in sorted(path for path in root.rglob("*") if path.suffix in (".onnx", ".packed")):
            name = f"{subject.registered.name}: {file.relative_to(root)}"
            try:
                found = model_file.read(file).md5
            except PackError as error:
                yield Link("file", "", name, subject.md5, "differs", f"in MLflow: {error}")
                continue
            state: State = "holds" if found == subject.md5 else "differs"
            yield Link("file", "", name, subject.md5, state, f"in MLflow: md5 {found}")


class _Check:
    """Knows what this folder's lock files say: only that must lie in this folder; of an older file the cache may have it."""

    def __init__(self, identify: Identify):
        self.here = identify.look.history.here
        self.outs = {path: md5 for _, path, md5 in reversed(list(self.here.outs()))}
        self.reads = {(path, md5) for name in self.here.now for path, md5 in self.here.stages[name].deps.items()}
        self.stores = Stores()

    def subject(self, subject: Subject) -> Iterator[Link]:
        """The file that was named by its path, and what it says of itself against the lock files."""
        if subject.file:
            known = bool(subject.path) or not subject.roots[0].stated
            note = (
                f"in {subject.path or 'a lock file'}"
                if known
                else "no lock file has this md5, so nobody vouches for its bytes"
            )
            yield Link("file", "", str(subject.file), subject.md5, "holds" if known else "differs", note)
        root = subject.roots[0] if subject.roots else None
        said = subject.about.get("deps") if subject.about else None
        if root and not root.stated and isinstance(said, Mapping):
            recorded = root.stage.deps
            for path in sorted(path for path in {*said, *recorded} if not is_code(path)):  # a file says its data alone
                same = said.get(path) == recorded.get(path)
                note = "as the file says itself" if same else f"the file says {said.get(path)} of itself"
                yield Link("about", root.name, path, recorded.get(path, "nothing"), "holds" if same else "differs", note)

    def node(self, node: Node) -> Iterator[Link]:
        """The outs of a stage, its code, what it read that no stage made, and its source."""
        for path, md5 in node.stage.outs.items():
            yield _link("out", node, path, md5, list(self._out(node, path, md5)))
        for path, md5 in node.stage.deps.items():
            if path in node.lost:
                yield Link("dep", node.name, path, md5, "not here", "made by a run that no lock file has")
            elif path not in node.reads and is_code(path) and not _is_local(node, path):
                yield self._code(node, path, md5)
            elif path not in node.reads or not any(path in maker.stage.outs for maker in node.reads[path]):
                yield self._dep(node, path, md5)  # what no stage wrote, or a folder that several write into
        if source := source_of(node):
            here = any(part in self.reads for part in node.stage.deps.items() if part[0] == source["what"])
            yield _source(node, source, here=here)

    def _out(self, node: Node, path: str, md5: str) -> Iterator[Seen]:
        now = self.outs.get(path) == md5
        if now:
            yield places.in_workspace(path, md5)
        yield from self.stores.seen(path, md5, now=now)
        if not md5.endswith(".dir"):
            yield places.in_git(path, md5, node.version.commit or "HEAD")  # metrics, plots and pages

    def _dep(self, node: Node, path: str, md5: str) -> Link:
        if (path, md5) not in self.reads:
            return Link("dep", node.name, path, md5, "not here", "this folder has that of a newer run")
        return _link("dep", node, path, md5, [places.in_workspace(path, md5)])

    def _code(self, node: Node, path: str, md5: str) -> Link:
        """Code in this folder; if that is another one, the commit that has it. It differs if dvc.lock says it is here."""
        seen = places.in_workspace(path, md5)
        if seen.state == "holds":
            return _link("code", node, path, md5, [seen])
        commit = places.commit_with(path, md5, node.version.commit)
        recorded = f"as recorded in commit {commit[:9]}" if commit else "as recorded in no commit"
        if (path, md5) in self.reads:
            what = "missing in this folder" if seen.state == "not here" else "differs in the workspace"
            return Link("code", node.name, path, md5, "differs", f"{what}; {recorded}")
        return Link("code", node.name, path, md5, "holds" if commit else "not here", recorded)


def _is_local(node: Node, path: str) -> bool:
    """Whether it is the file or folder that a local source names."""
    return any(key.startswith("fetch_local.") for key in node.stage.params) and not path.endswith(".py")


def _link(kind: str, node: Node, path: str, md5: str, seen: Sequence[Seen]) -> Link:
    """One link of what several places have: one that differs is worse than one that lacks it."""
    for state in ("differs", "holds", "by name"):
        found = [each for each in seen if each.state == state]
        if found and state == "differs":
            note = "; ".join(f"in {each.place}: {each.what}" for each in found)
            return Link(kind, node.name, path, md5, "differs", note)
        if found:
            return Link(kind, node.name, path, md5, found[0].state, ", ".join(each.place for each in found))
    some = "; ".join(f"{each.place}: {each.what}" for each in seen if each.what)
    return Link(kind, node.name, path, md5, "not here", some or f"not in {', '.join(each.place for each in seen)}")


def _source(node: Node, source: Mapping[str, Any], *, here: bool) -> Link:
    """What pins a source. A package is not kept, but its pin can be compared with params.yaml's.

    here: it is a local file, and this folder should have it as it was; it is read.
    """
    pin = str(source.get("revision") or source.get("sha256") or "not pinned")
    section = next(key for key in node.stage.params if key.startswith(("fetch.", "fetch_local.")))
    group, _, name = section.partition(".")
    local = Path(str(source["what"]))
    if here and source.get("sha256") and local.is_file():
        found = model_file.sha256_of(local)
        return Link("source", node.name, source["what"], pin, "holds" if found == pin else "differs", f"sha256 {found}")
    sources = value_of(read_yaml(Path("params.yaml")) if Path("params.yaml").exists() else {}, group)[1]
    now = sources.get(name) if isinstance(sources, Mapping) else None
    pinned = "as params.yaml pins it" if isinstance(now, Mapping) and pin in now.values() else "params.yaml has another pin"
    return Link(
        "source", node.name, source["what"], pin, "not here", f"{pinned}; not kept after fetching, so not read again"
    )


def lines(found: Sequence[Link], *, full: bool) -> Iterator[str]:
    """A line for each stage, then one for each link that does not hold, then the sums. full: a line for each link."""
    if full:
        yield from (_line(link) for link in found)
    else:
        stages = list(dict.fromkeys(link.stage for link in found if link.stage))
        width = max(map(len, stages), default=0) + 2
        yield from (
            f"holds     {link.path}  md5 {link.expected}" for link in found if not link.stage and link.state == "holds"
        )
        for stage in stages:
            yield f"{stage.ljust(width)}{_counts([link for link in found if link.stage == stage])}"
        yield from dict.fromkeys(_line(link) for link in found if link.state == "differs")
    states = Counter(link.state for link in found)
    yield (
        f"{states['holds']} checksums hold, {states['differs']} differ, {states['by name']} are on the remote by name, "
        f"{states['not here']} are not here{'' if full else ' (see --full)'}."
    )


def _line(link: Link) -> str:
    return f"{link.state.ljust(9)} {link.kind.ljust(6)} {link.path}  {link.expected}  {link.note}"


WORDS = {"about": "statement", "out": "out", "dep": "dep", "code": "code file", "source": "source"}


def _counts(found: Sequence[Link]) -> str:
    """`holds: 4 outs, 23 code files; not here: 1 source`."""
    states: list[str] = []
    for state in ("differs", "holds", "by name", "not here"):
        kinds = Counter(link.kind for link in found if link.state == state)
        words = ", ".join(f"{kinds[kind]} {word}{'s' * (kinds[kind] > 1)}" for kind, word in WORDS.items() if kinds[kind])
        states += [f"{state}: {words}"] if words else []
    return "; ".join(states)


def check(found: Sequence[Link]) -> None:
    """Raises DataError that names the links that differ."""
    if wrong := [link for link in found if link.state == "differs"]:
        some = ", ".join(f"{link.path} ({link.note})" for link in wrong[:NAMED])
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise DataError(f"expected every checksum to hold, found {len(wrong)} that differ: {some}{more}.")


def document(found: Sequence[Link]) -> dict[str, Any]:
    """The links as data."""
    return {
        "format": FORMAT,
        "links": [asdict(link) for link in found],
        "states": dict(Counter(link.state for link in found)),
    }
