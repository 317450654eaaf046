"""The installed packages: within their bounds, as in requirements.lock, known to work together; torch's build."""

import json
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.doctor.packages import missed, version

PYPROJECT, LOCK = Path("pyproject.toml"), Path("requirements.lock")
# What happens outside of a bound, where it is known: its error says something else.
KNOWN = {
    "fastapi": "prefect 3.8 cannot start its server with a newer one, and reports a time-out",
    "sqlalchemy": "with a newer one prefect 3.8's scheduler fails, and no schedule fires",
    "filelock": "an older one holds a lock whose file was removed",
    "mlflow": "the project's tracking is tested with this release alone",
    "prefect": "the deployments are tested with this release alone",
}
TOGETHER = ("mlflow", "mlflow-skinny", "mlflow-tracing")  # of one release; pip may leave an older one behind
LARGE = ("prefect", "dvc", "mlflow", "datasets", "transformers", "onnxruntime", "accelerate")
DEVICES = ("/dev/nvidia0", "/dev/kfd")


def bounds() -> Iterator[Finding]:
    """Every package that the project names, against its bounds."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = [text for part in (project["dependencies"], extras["train"], extras["pipeline"]) for text in part]
    named = [text for text in named if not text.startswith(f"{project['name']}[")]
    wrong = list(missed(named))
    for finding in wrong:
        reason = f": {KNOWN[finding.about]}" if finding.about in KNOWN else ""
        yield Finding(finding.about, PROBLEM, finding.found + reason, finding.advice)
    found = {name: version(name) for name in TOGETHER}
    if len(set(found.values()) - {None}) > 1:
        said = ", ".join(f"{name} {number}" for name, number in found.items())
        yield Finding(
            "mlflow", PROBLEM, f"expected one release, found {said}", f"pip install {_pins(found, found['mlflow'])}"
        )
    if not wrong:
        yield Finding("bounds", OK, f"{len(named)} packages are within the bounds of {PYPROJECT}")


def _pins(names: dict[str, str | None], number: str | None) -> str:
    return " ".join(f"{name}=={number}" for name in names)


def lock() -> Iterator[Finding]:
    """The installed versions against those that were tested together."""
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    found = {name: (wanted, version(name)) for name, wanted in pinned}
    other = [f"{name} {here} for {wanted}" for name, (wanted, here) in found.items() if here not in (wanted, None)]
    if other:
        more = f" and {len(other) - 4} more" * (len(other) > 4)
        advice = f"These are not tested together. pip install --no-deps -r {LOCK}"
        yield Finding("lock", NOTE, f"other versions than in {LOCK}: {', '.join(other[:4])}{more}", advice)
    else:
        yield Finding("lock", OK, f"{len(pinned)} versions are those of {LOCK}")


def neighbours() -> Iterator[Finding]:
    """What the large packages say that they need, where pip was told to ignore it. Those for other systems are left out."""
    for name in LARGE:
        needed = [text for text in metadata.requires(name) or () if ";" not in text] if version(name) else []
        for finding in missed(needed):
            yield Finding(name, PROBLEM, f"{name} {version(name)}: {finding.found}", f"pip install --no-deps -r {LOCK}")


def code() -> Iterator[Finding]:
    """Whether the installation is of this folder, and torch's build the one for this machine."""
    origin = json.loads(metadata.distribution("pruneonce").read_text("direct_url.json") or "{}").get("url", "")
    folder = Path(unquote(urlsplit(origin).path)) if origin.startswith("file:") else None
    if folder is None or folder.resolve() != Path.cwd().resolve():
        said = f"pruneonce is installed from {folder or 'a package'}; programs outside of this folder import that one"
        yield Finding("library", NOTE, said, "To have this folder's: make install")
    torch = version("torch")
    if torch is None:
        yield Finding("torch", PROBLEM, "expected torch, found none: nothing can be trained", "make install")
        return
    devices = [device for device in DEVICES if Path(device).exists()]
    if devices and "+cpu" in torch:
        yield Finding(
            "torch", NOTE, f"{torch}, which uses no GPU, but there is {devices[0]}", "make install TORCH=torch==..."
        )
    else:
        yield Finding("torch", OK, f"{torch}; {'a GPU: ' + devices[0] if devices else 'no GPU on this machine'}")
