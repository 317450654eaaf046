"""A source from a file or folder of this machine, copied so that DVC keeps what was used.

reads   path    file or folder                                    fetch_local.<name>.path
writes  source  folder: a model's files, or one file a split      data/raw/<name>
"""

import shutil

from pipeline.params.sources import LocalSource
from pipeline.stage import Given, Item, Log, Metrics, Out, main
from pruneonce.sources import fetch


def run(item: Item, path: Given, source: Out, *, fetch_local: LocalSource, log: Log) -> Metrics:
    shutil.rmtree(source, ignore_errors=True)
    fetch.copy_local(path, fetch_local.members, fetch_local.sha256, source)
    files = [f for f in source.rglob("*") if f.is_file()]
    return {"files": len(files), "bytes": sum(f.stat().st_size for f in files)}


if __name__ == "__main__":
    main(run)
