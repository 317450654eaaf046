"""The lock files of this folder and of every commit: which of them names a file, and what else it names."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.lineage import git
from pipeline.tracking.lock import Stage, current, current_in, locked, locked_in, meet
from pruneonce.errors import ConfigError

MD5 = re.compile(rb"md5: ['\"]?([0-9a-f]{32}(?:\.dir)?)|\"md5\": \"([0-9a-f]{32}(?:\.dir)?)\"")


@dataclass(frozen=True)
class Version:
    """What the lock files said at one time.

    commit: "" for this folder as it is.
    now: names of the stages of that time's dvc.yaml and params.yaml. DVC keeps the entries of former profiles too.
    """

    commit: str
    stages: dict[str, Stage]
    now: frozenset[str]

    @property
    def name(self) -> str:
        """For a message."""
        return f"commit {git.dated(self.commit)}" if self.commit else "dvc.lock"

    def outs(self) -> Iterator[tuple[Stage, str, str]]:
        """(stage, path, md5) of every out; those of the current stages first."""
        for stage in sorted(self.stages.values(), key=lambda stage: stage.name not in self.now):
            yield from ((stage, path, md5) for path, md5 in stage.outs.items())


NONE = Version("", {}, frozenset())


class History:
    """All versions, the newest first. A commit's lock files are parsed only if their text names what is looked for."""

    def __init__(self) -> None:
        self.here = Version("", locked(), frozenset(current()))
        self.at = functools.cache(self._at)

    def versions(self, text: str) -> Iterator[Version]:
        """This folder's version, then those of commits whose lock files contain this text."""
        yield self.here
        for commit, locks in self._locks:
            if text.encode() in locks and (version := self.at(commit)):
                yield version

    @functools.cached_property
    def _locks(self) -> list[tuple[str, bytes]]:
        return list(git.locks())

    def _at(self, commit: str) -> Version | None:
        """The version of a commit; None if it has no lock file, or none that can be read."""

        def read(path: Path) -> str | None:
            found = git.blob(commit, path)
            return None if found is None else found.decode("utf-8", "replace")

        try:
            version = Version(commit, locked_in(read), frozenset(current_in(read)))
        except ConfigError:
            return None
        return version if version.stages else None

    def made(self, md5: str, path: str = "") -> tuple[Version, Stage, str] | None:
        """(version, stage, path) of the newest version in which a stage wrote this md5; at this path, if several did."""
        for version in self.versions(md5):
            found = [(stage, out) for stage, out, recorded in version.outs() if recorded == md5]
            if found:
                stage, out = next((one for one in found if one[1] == path), found[0])
                return version, stage, out
        return None

    def named(self, prefix: str) -> set[str]:
        """The md5s of outs in all lock files that begin so."""
        outs = {md5 for _, _, md5 in self.here.outs() if md5.startswith(prefix)}
        for commit, locks in self._locks:
            found = {(one or other).decode() for one, other in MD5.findall(locks)}
            if any(md5.startswith(prefix) and md5 not in outs for md5 in found) and (version := self.at(commit)):
                outs |= {md5 for _, _, md5 in version.outs() if md5.startswith(prefix)}
        return outs


def readers(version: Version, path: str, md5: str) -> list[Stage]:
    """The stages of a version that read this file, or a folder that it lies in, or a file in it."""
    return [
        stage
        for stage in version.stages.values()
        if any(meet(dep, path) and (dep != path or found == md5) for dep, found in stage.deps.items())
    ]
