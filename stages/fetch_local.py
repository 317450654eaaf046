"""A source from a file or folder of this machine, copied so that DVC keeps what was used.

reads   path    file or folder                                    fetch_local.<name>.path
writes  source  folder: a model's files, or one file a split      data/raw/<name>
"""

import shutil

from pipeline.params.sources import LocalSource
from pipeline.stage import Given, Item, Metrics, Out, main
from pruneonce.sources.folders import file_counts
from pruneonce.sources.local import copy_local


def run(item: Item, path: Given, source: Out, *, fetch_local: LocalSource) -> Metrics:
    shutil.rmtree(source, ignore_errors=True)
    copy_local(path, fetch_local.members, fetch_local.sha256, source)
    return file_counts(source)


if __name__ == "__main__":
    main(run)
