"""Audit the versions of requirements.lock, and of the installed torch, for known vulnerabilities.

`python -m tests.audit` asks PyPI by pip-audit. `python -m tests.audit --advisories FOLDER` reads a copy of
https://github.com/pypa/advisory-database or of OSV's PyPI archive, and needs no network.
Exit codes: 0 none is known, 1 some are, 69 not all could be asked about, so nothing is said of the others.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from pruneonce.errors import PruneOnceError, plain
from pruneonce.terminal import flushed_output
from tests.audit import advisories
from tests.audit.advisories import Found

LOCK = Path(__file__).parents[2] / "requirements.lock"
OWN = Path(sys.prefix) / "audit/bin/pip-audit"  # where `make audit` installs it, apart from what it audits
UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
SECONDS = 900


class NotAudited(PruneOnceError):
    """Not all packages could be asked about."""


def pinned(lock: Path) -> dict[str, str]:
    """Name -> version of a lock file, and of torch, which the Makefile chooses. Raises NotAudited for a line without one."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines()]
    found = {}
    for line in filter(None, lines):
        if not (match := re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==([^\s\\]+)(?:[\s\\].*)?", line)):
            raise NotAudited(f"expected NAME==VERSION in each line of {lock}, found {line!r}. Pin it.")
        found[match[1]] = match[2]
    if "torch" not in found:
        found["torch"] = metadata.version("torch").partition("+")[0]
    return found


def by_pip_audit(packages: Mapping[str, str], program: str | None) -> list[Found]:
    """What pip-audit finds. It skips what an index does not know, and still ends with 0: that is NotAudited here."""
    if program is None:
        raise NotAudited("expected pip-audit, found none: `make audit` installs it from the package index.")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in packages.items()))
        file.flush()
        words = ["--requirement", file.name, "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        try:
            done = subprocess.run([program, *words], capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotAudited(f"expected pip-audit's answer, found: {error}.") from None
    try:
        said = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NotAudited(f"expected pip-audit's answer, found: {plain(last)[:300]}. Is there a network?") from None
    answered = {one["name"] for one in said if "skip_reason" not in one}
    if len(answered) < len(packages):
        raise NotAudited(
            f"expected answers on {len(packages)} packages, found {len(answered)}: the package index does not say the "
            "others' vulnerabilities. Is there a network, and is it PyPI itself?"
        )
    return [
        Found(one["name"], one["version"], fault["id"], tuple(fault["fix_versions"]))
        for one in said
        for fault in one["vulns"]
    ]


def audit(packages: Mapping[str, str], folder: Path | None, program: str | None) -> Iterator[str]:
    """Lines: one for each vulnerability, and what was asked. Raises NotAudited."""
    if folder is None:
        found, asked = by_pip_audit(packages, program), "PyPI"
    else:
        try:
            found, count = advisories.affecting(packages, folder)
        except PruneOnceError as error:
            raise NotAudited(str(error)) from None
        asked = f"{count} advisories in {folder}"
    for one in found:
        yield f"{one.package} {one.version}: {one.name}, fixed in {', '.join(one.fixed) or 'no version'}"
    yield f"{len(packages)} packages, {len(found)} known vulnerabilities, by {asked}"


def main(words: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--advisories", type=Path, metavar="FOLDER", help="a local copy of a database; needs no network")
    parser.add_argument("--lock", type=Path, default=LOCK, help="the lock file; default: the project's")
    with flushed_output():
        args = parser.parse_args(words)
        try:
            program = str(OWN) if OWN.exists() else shutil.which("pip-audit")
            lines = list(audit(pinned(args.lock), args.advisories, program))
        except (NotAudited, OSError) as error:
            print(f"Not audited: {plain(error)} Without a network: --advisories FOLDER (docs/security.md).", file=sys.stderr)
            return UNAVAILABLE
        print(*lines, sep="\n")
    return 1 if len(lines) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
