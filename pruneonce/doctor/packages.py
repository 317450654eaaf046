"""Python, and the packages that loading a model needs, within the bounds of this version of pruneonce."""

import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from pruneonce import projects
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.errors import PipelineError


def python() -> Iterator[Finding]:
    found = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("python", OK, f"{found} at {sys.executable}")
    else:
        yield Finding("python", PROBLEM, f"expected Python 3.11, found {found}", "Install pruneonce with python3.11.")


def base() -> Iterator[Finding]:
    """The packages without which no model is loaded."""
    named = [text for text in metadata.requires("pruneonce") or () if "extra ==" not in text]
    wrong = list(missed(named))
    yield from wrong
    if not wrong:
        yield Finding("packages", OK, f"{len(named)} that load a model, within their bounds")


def project() -> Iterator[Finding]:
    """In a project's folder: whether its commands can run. Elsewhere there is nothing to say."""
    if not projects.is_clone() and projects.named_version() is None:
        return
    if projects.is_foreign():
        yield Finding(
            "project",
            NOTE,
            f"this folder is a clone, and pruneonce is installed from {projects.root()}: nothing of the clone was run",
            "If you trust its code: make install, then .venv/bin/pruneonce doctor.",
        )
        return
    try:
        projects.check_packages()
        if not projects.is_clone():  # a clone has its own code
            projects.check_version()
    except PipelineError as error:
        yield Finding("project", PROBLEM, f"this folder is a project whose commands cannot run: {error}")


def install() -> str:
    """The command that installs what a project needs."""
    return "make install" if projects.is_clone() else f'pip install "pruneonce[pipeline]=={projects.installed()}"'


def missed(requirements: Iterable[str]) -> Iterator[Finding]:
    """A finding for each package that is not there, or outside of its bounds, such as "numpy>=2.1,<3"."""
    for text in requirements:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)", text)
        assert match, text
        name, bounds = match[1], match[2].strip()
        found = version(name)
        if found is None:
            yield Finding(name, PROBLEM, f"expected {name}{bounds}, found none", f'pip install "{name}{bounds}"')
        elif not all(_within(found, bound.strip()) for bound in bounds.split(",") if bound.strip()):
            yield Finding(name, PROBLEM, f"expected {name}{bounds}, found {found}", f'pip install "{name}{bounds}"')


def version(name: str) -> str | None:
    """The installed version; None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _within(found: str, bound: str) -> bool:
    """Whether a version keeps a bound of pyproject.toml, by the numbers of its release: `>=2.1`, `<3`, `==1.2.*`."""
    match = re.fullmatch(r"(>=|<=|==|!=|<|>)\s*([\d.]+)(\.\*)?", bound)
    if match is None:
        return True
    here, there = _release(found), _release(match[2])
    if match[3]:
        return (here[: len(there)] == there) == (match[1] == "==")
    length = max(len(here), len(there))
    here, there = (numbers + (0,) * (length - len(numbers)) for numbers in (here, there))
    return {
        ">=": here >= there,
        "<=": here <= there,
        "==": here == there,
        "!=": here != there,
        "<": here < there,
        ">": here > there,
    }[match[1]]


def _release(text: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()
