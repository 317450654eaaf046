"""Preparation of a task: the rows of its source, and remarks for the owner of the rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pruneonce.sources import tables
from pruneonce.tasks.examples import Example


def read_examples(
    source: Path, split: str, columns: Sequence[str], make: Callable[..., Example], *, skip_rows: int
) -> list[Example] | None:
    """Return the rows of a split; None for a validation or test split that the source lacks: it can be carved.

    Raises DataError if there is no file of another split, and as `tables.read_as`.
    """
    path = (tables.find_split if split in ("validation", "test") else tables.need_split)(source, split)
    return None if path is None else list(tables.read_as(path, columns, make, skip_rows=skip_rows))


def class_remarks(absent: Mapping[str, Sequence[str]], doubtful: Sequence[str], *, classes: int) -> Iterator[str]:
    """Yield a line for every split without rows of some classes, and one for names that may be missing values."""
    for split, names in absent.items():
        yield f"{split} lacks {len(names)} of {classes} classes, e.g. {', '.join(names[:12])}"
    if doubtful:
        yield (
            f"{list(doubtful)} are taken for classes. Leave the cells of missing labels empty; else name all in the task's "
            "`labels`."
        )


def cut_remark(sizes: Mapping[str, Mapping[str, int]], *, max_tokens: int, setting: str) -> str:
    """Return a line with the share of texts that were cut, "" if none was. sizes: split -> {"rows", "cut"}."""
    shares = [
        f"{size['cut']} of {size['rows']} {split} rows ({100 * size['cut'] / size['rows']:.0f} %)"
        for split, size in sizes.items()
        if size["cut"]
    ]
    advice = f"longer than max_tokens={max_tokens}, and cut. If their ends matter: raise {setting}."
    return f"{', '.join(shares)} {advice}" if shares else ""
