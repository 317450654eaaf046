"""Splits on the disk: rows of any kind of task, tokenised, as Arrow files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from transformers import BatchEncoding

from pruneonce.errors import DataError, ModelError
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import Kind

# Of every kind's splits. Only pairs have `pair`, and `token_type_ids` if the model reads them.
COLUMNS = {
    "text": pa.string(),
    "pair": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "token_type_ids": pa.list_(pa.int8()),
}


def positions_after_cut(ids: Sequence[int], *, max_tokens: int, last: int) -> list[int]:
    """Return the positions of the tokens that remain when a row is cut to max_tokens.

    Special tokens remain. Of a pair the longer text is cut first. last: the token that closes a text ([SEP]).
    """
    size = len(ids)
    if size <= max_tokens:
        return list(range(size))
    close, second = between_texts(ids, last)
    if close == size - 1:
        return [*range(max_tokens - 1), size - 1]
    room = max_tokens - 2 - (second - close)
    one, two = close - 1, size - 1 - second
    short = min(one, two, room // 2)
    one, two = (short, room - short) if one <= two else (room - short, short)
    return [*range(1 + one), *range(close, second), *range(second, second + two), size - 1]


def between_texts(ids: Sequence[int], last: int) -> tuple[int, int]:
    """Return the positions of the token that closes the first text of a pair, and of the second text's first token.

    Where there is no second text, the latter is that of the last token. last: the token that closes a text.
    """
    close = list(ids).index(last)
    return close, next((i for i in range(close, len(ids)) if ids[i] != last), len(ids) - 1)


def encode_texts(examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
    """Return the columns of texts or pairs with at most max_tokens token ids, and how many were cut."""
    texts = [list(column) for column in zip(*(row.texts for row in examples), strict=True)]
    whole = tokenizer(*texts, truncation=False, verbose=False)
    whole["input_ids"] = token_ids(whole, tokenizer)
    positions = [positions_after_cut(ids, max_tokens=max_tokens, last=tokenizer.sep_token_id) for ids in whole["input_ids"]]
    columns = dict(zip(("text", "pair"), texts, strict=False))
    for name in ("input_ids", "token_type_ids") if len(texts) == 2 and "token_type_ids" in whole else ("input_ids",):
        columns[name] = [[ids[i] for i in chosen] for ids, chosen in zip(whole[name], positions, strict=True)]
    return columns, sum(len(ids) > max_tokens for ids in whole["input_ids"])


def token_ids(encoded: BatchEncoding, tokenizer) -> list[list[int]]:
    """Return the token ids of each row.

    A closing token inside a text, such as a "[SEP]" that somebody wrote, would end that text. So it becomes the token that
    begins a row: not every tokenizer has an unknown one. `serving.texts` does the same.
    """
    rows, last, first = encoded["input_ids"], tokenizer.sep_token_id, tokenizer.cls_token_id
    if not rows or not encoded.is_fast:
        return rows
    closing = sum(token == last for token, part in zip(rows[0], encoded.sequence_ids(0), strict=True) if part is None)

    def plain(row: int) -> list[int]:
        inside = zip(rows[row], encoded.sequence_ids(row), strict=True)
        return [first if token == last and part is not None else token for token, part in inside]

    return [ids if ids.count(last) == closing else plain(row) for row, ids in enumerate(rows)]


def check_offsets(tokenizer) -> None:
    """Raise ModelError for a tokenizer that does not give the characters of each token."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"expected a tokenizer in Rust (tokenizer.json) for tags and answers, found {type(tokenizer).__name__}, which "
            "does not give the characters of a token. Classification and regression need none."
        )


def write_split(path: Path, rows: Sequence[Example], kind: Kind, tokenizer, *, max_tokens: int) -> int:
    """Tokenise the rows into an Arrow file: text, the kind's columns, input_ids. Return how many texts were cut."""
    out, cut = None, 0
    with pa.OSFile(str(path), "wb") as sink:
        for start in range(0, len(rows), 1000):
            columns, more = kind.encode(rows[start : start + 1000], tokenizer, max_tokens=max_tokens)
            cut += more
            types = {**COLUMNS, **kind.columns}
            schema = pa.schema({name: types[name] for name in columns})
            out = out or pa.ipc.new_stream(sink, schema)
            out.write_batch(pa.record_batch(columns, schema=schema))
        if out:
            out.close()
    return cut


def cut_remark(sizes: Mapping[str, Mapping[str, int]], *, max_tokens: int, setting: str) -> str:
    """Return a line with the share of texts that were cut, "" if none was. sizes: split -> {"rows", "cut"}."""
    shares = [
        f"{size['cut']} of {size['rows']} {split} rows ({100 * size['cut'] / size['rows']:.0f} %)"
        for split, size in sizes.items()
        if size["cut"]
    ]
    advice = f"longer than max_tokens={max_tokens}, and cut. If their ends matter: raise {setting}."
    return f"{', '.join(shares)} {advice}" if shares else ""


def read_split(path: Path) -> Dataset:
    """Return the split as a memory-mapped data set."""
    return Dataset.from_file(str(path))


def read_test_texts(folder: Path) -> Iterator[str]:
    """Yield every text of every test split of a task: both of a pair, and the context of a question.

    Raises DataError if the folder has no test split.
    """
    paths = sorted(folder.glob("test*.arrow"))
    if not paths:
        raise DataError(
            f"expected the test split of task {folder.name!r} in {folder}, found none. Run `prepare_task` for it."
        )
    for path in paths:
        split = read_split(path)
        for column in ("text", "pair"):
            if column in split.column_names:
                yield from split[column]
