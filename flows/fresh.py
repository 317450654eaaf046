"""Make a clone of the code, which is deleted after one run, a place to run in.

The deployment `fresh` (prefect.yaml) calls `python -m flows.fresh` in the clone. What must outlive the clone has to be
outside of it, so this ends with an error if it is not: before anything is computed.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dvc.repo import Repo
from platformdirs import user_cache_path

from flows import trouble
from flows.units import KERNELS
from pipeline.hashing import file_md5
from pipeline.scratch import PLACE
from pipeline.tracking import address
from pruneonce.errors import PipelineError

KEEP = {
    "MLFLOW_TRACKING_URI": "MLflow's runs, in a server: export MLFLOW_TRACKING_URI=http://SERVER:5000",
    PLACE: f"checkpoints: export {PLACE}=/FOLDER/OF/ALL/MACHINES",
}


def check(variables: Mapping[str, str], clone: Path) -> None:
    """Raises PipelineError if the cache, MLflow's runs or the checkpoints would be deleted with the clone."""
    missing = [said for name, said in KEEP.items() if not variables.get(name) or _inside(variables[name], clone)]
    with trouble.plainly("a clone that DVC can read"), Repo(str(clone)) as repo:
        if _inside(repo.cache.local.path, clone):
            missing.insert(0, "DVC's cache: dvc cache dir --global /FOLDER/OF/ALL/MACHINES")
    if missing:
        raise PipelineError(
            "expected places outside of the clone, which is deleted after the run, found none for "
            f"{'; for '.join(missing)}. Do that where the worker is started, and start it again."
        )


def _inside(place: str, clone: Path) -> bool:
    """Whether a folder, or the file of an address, is in the clone."""
    file = address.sqlite_file(place) if "://" in place else Path(place)
    return file is not None and (clone / file).resolve().is_relative_to(clone.resolve())


def kept_kernels() -> Path:
    """The folder, outside of the clone, for the library that is built from this clone's sources."""
    return user_cache_path("pruneonce") / "kernels" / file_md5(Path("kernels")).removesuffix(".dir")


def put_kernels(library: Path, kept: Path) -> str:
    """Copy the library of the sparse kernels into the clone. kept: a folder where it is, or will be, for the next clone.

    Returns a line that says why it is missing, if it cannot be built.
    """
    stored = kept / library.name
    if not stored.exists():
        built = subprocess.run([sys.executable, "-m", "kernels.build"], capture_output=True, text=True)
        if built.returncode:
            return f"The sparse kernels are not measured: {built.stderr.strip().rpartition(chr(10))[2]}"
        kept.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}")
        shutil.copyfile(library, part)
        part.replace(stored)
    shutil.copyfile(stored, library)
    return ""


def main() -> None:
    """In a clone: check the worker's settings, and fetch or build the sparse kernels."""
    with trouble.one_line():
        check(os.environ, Path.cwd())
        if problem := put_kernels(KERNELS, kept_kernels()):
            print(problem)


if __name__ == "__main__":
    main()
