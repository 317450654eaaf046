"""The installed packages: within their bounds, as in requirements.lock, known to work together; torch's build."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.doctor.packages import install, missed, version

PYPROJECT, LOCK = Path("pyproject.toml"), Path("requirements.lock")  # of a clone
# What happens outside of a bound, where it is known: its error says something else.
KNOWN = {
    "fastapi": "prefect 3.8 cannot start its server with a newer one, and reports a time-out",
    "sqlalchemy": "with a newer one prefect 3.8's scheduler fails, and no schedule fires",
    "filelock": "an older one holds a lock whose file was removed",
    "mlflow": "the tracking is tested with this release alone",
    "prefect": "the deployments are tested with this release alone",
}
TOGETHER = ("mlflow", "mlflow-skinny", "mlflow-tracing")  # of one release; pip may leave an older one behind
LARGE = ("prefect", "dvc", "mlflow", "datasets", "transformers", "onnxruntime", "accelerate")
DEVICES = ("/dev/nvidia0", "/dev/kfd")


def bounds() -> Iterator[Finding]:
    """Every package that the project names, against its bounds."""
    named = _named()
    wrong = list(missed(named))
    for finding in wrong:
        reason = f": {KNOWN[finding.about]}" if finding.about in KNOWN else ""
        yield Finding(finding.about, PROBLEM, finding.found + reason, finding.advice)
    if not wrong:
        yield Finding("bounds", OK, f"{len(named)} packages are within the bounds of pruneonce")


def _named() -> list[str]:
    """The requirements of the pipeline: of this clone, else of the installed package."""
    if PYPROJECT.is_file():
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"]
        every = [*project["dependencies"], *extras["train"], *extras["pipeline"]]
    else:
        said = [text.partition(";") for text in metadata.requires("pruneonce") or ()]
        every = [text for text, _, marker in said if not marker or re.search(r"""['"](train|pipeline)['"]""", marker)]
    return [text for text in every if not text.startswith("pruneonce[")]


def neighbours() -> Iterator[Finding]:
    """What the large packages say that they need, where pip was told to ignore it. Those for other systems are left out."""
    for name in LARGE:
        needed = [text for text in metadata.requires(name) or () if ";" not in text] if version(name) else []
        for finding in missed(needed):
            yield Finding(name, PROBLEM, f"{name} {version(name)}: {finding.found}", install())
    yield from _together({name: version(name) for name in TOGETHER})


def _together(found: Mapping[str, str | None]) -> Iterator[Finding]:
    if len(set(found.values()) - {None}) > 1:
        said = ", ".join(f"{name} {number}" for name, number in found.items())
        pins = " ".join(f"{name}=={found['mlflow']}" for name in found)
        yield Finding("mlflow", PROBLEM, f"expected one release, found {said}", f"pip install {pins}")


def lock() -> Iterator[Finding]:
    """The installed versions against those that were tested together."""
    if not LOCK.is_file():
        return
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: (wanted, version(name)) for name, wanted in pinned}
    other = [f"{name} {here} for {wanted}" for name, (wanted, here) in found.items() if here not in (wanted, None)]
    if other:
        more = f" and {len(other) - 4} more" * (len(other) > 4)
        advice = f"They are not tested together. pip install --no-deps -r {LOCK}"
        yield Finding("lock", NOTE, f"other versions than in {LOCK}: {', '.join(other[:4])}{more}", advice)
    else:
        yield Finding("lock", OK, f"{len(pinned)} versions are those of {LOCK}")


def torch() -> Iterator[Finding]:
    """Torch's build, and whether it uses the GPU that is there."""
    found = version("torch")
    devices = [device for device in DEVICES if Path(device).exists()]
    if found is None:
        yield Finding("torch", PROBLEM, "expected torch, found none: nothing can be trained", install())
    elif devices and "+cpu" in found:
        advice = "Install a build for it: make install TORCH=... (docs/gpus.md)."
        yield Finding("torch", NOTE, f"{found}, which uses no GPU, but there is {devices[0]}", advice)
    else:
        yield Finding("torch", OK, f"{found}; {'a GPU: ' + devices[0] if devices else 'no GPU on this machine'}")


def origin() -> Iterator[Finding]:
    """In a clone: whether the installation is of it."""
    if not PYPROJECT.is_file():
        return
    said = json.loads(metadata.distribution("pruneonce").read_text("direct_url.json") or "{}").get("url", "")
    folder = Path(unquote(urlsplit(said).path)) if said.startswith("file:") else None
    if folder is None or folder.resolve() != Path.cwd().resolve():
        found = f"pruneonce is installed from {folder or 'a package'}; programs outside of this folder import that one"
        yield Finding("library", NOTE, found, "To have this folder's: make install")
