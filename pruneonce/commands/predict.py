"""answer texts with an exported model: labels and probabilities, without torch"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneonce.commands import inspect
from pruneonce.errors import DataError, PackError

EXAMPLES = (
    'pruneonce predict int8.packed --text "oil prices rose in the gulf today"',
    "pruneonce predict int8.packed --file reviews.csv --column body --json > answers.jsonl",
    'pruneonce predict models:/pruneonce-r8@champion --text "wheat exports fell"',
)

DIGITS = 9  # of a number of rows
SHOWN = 4  # numbers of a vector, on a line
NOT_READ = "?"  # in place of the tag of a word that the model did not read


def options(parser: argparse.ArgumentParser) -> None:
    inspect.how(parser, ("auto", "stock", "sparse"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", action="append", help="a text, or a question; may be given several times")
    rows = "csv, tsv, tab, jsonl, parquet, or txt with a text a line; -: standard input"
    what.add_argument("--file", dest="rows", type=Path, help=rows)
    parser.add_argument("--pair", action="append", help="the second text of each --text, or the context of a question")
    parser.add_argument("--column", help="of the text in --file; default: as in training, else text or question")
    parser.add_argument("--pair-column", help="of the second text in --file; default: as in training, else pair or context")
    parser.add_argument("--skip-rows", type=_count, help="rows at the beginning of --file that are not data; default: 0")
    parser.add_argument("--json", action="store_true", help="an object a line, with every probability")


def lines(args: argparse.Namespace) -> Iterator[str]:
    from pruneonce.serving.predictor import Predictor, input_names  # imports numpy, onnx, onnxruntime
    from pruneonce.serving.rows import read

    _check_options(args)
    if str(args.file).startswith("models:"):  # the project's command has put a file in its place
        raise PackError(
            f"expected a model file here, found {args.file}. A registered model is found in the folder of its project: "
            "change to it. It needs the extra [pipeline]. In a clone, install pruneonce from the clone."
        )
    predictor = Predictor(args.file, threads=args.threads, execution=args.execution)
    trained = [predictor.about["columns"][column] for column in ("text", "pair")]
    inputs = dict(zip(input_names(predictor.about), trained, strict=False))  # name -> column of training

    def line(answer: dict[str, Any], row: Sequence[Any]) -> str:
        return json.dumps(answer, ensure_ascii=False) if args.json else _shown(answer, row[0])

    if args.text:
        rows = _given(args.text, args.pair or [], pairs=len(inputs) == 2)
        yield from map(line, predictor(rows), rows)
    else:
        columns = _columns(args, inputs)
        yield from read(args.rows, columns, lambda *row: line(predictor.answer(row), row), skip_rows=args.skip_rows or 0)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > DIGITS:
        raise argparse.ArgumentTypeError(f"expected a number of at most {DIGITS} digits, found {text!r}")
    return int(text)


def _check_options(args: argparse.Namespace) -> None:
    """Raises DataError for an option that would be ignored."""
    if args.rows and args.pair:
        raise DataError(
            "expected --pair with --text, found it with --file. There the second text is in a column: --pair-column NAME."
        )
    of_file = {"--column": args.column, "--pair-column": args.pair_column, "--skip-rows": args.skip_rows}
    if args.text and (found := [option for option, value in of_file.items() if value is not None]):
        raise DataError(f"expected {found[0]} with --file, found it with --text. Leave it out.")


def _given(texts: Sequence[str], seconds: Sequence[str], *, pairs: bool) -> list[tuple[str, ...]]:
    """The rows of the command line. pairs: whether the model reads pairs. Raises DataError unless they are as many."""
    if len(seconds) != (len(texts) if pairs else 0):
        needs = "one --pair for each --text" if pairs else "no --pair: the model reads one text"
        raise DataError(f"expected {needs}, found {len(texts)} --text and {len(seconds)} --pair.")
    return [*zip(texts, seconds, strict=True)] if pairs else [(text,) for text in texts]


def _columns(args: argparse.Namespace, inputs: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """For each input of the model the option that names its column, and the names that it may have."""
    given = {"--column": args.column, "--pair-column": args.pair_column}
    if len(inputs) == 1 and args.pair_column:
        raise DataError("expected no --pair-column: the model reads one text. Leave it out.")
    return {
        option: (own,) if own else (trained or name, name)
        for (option, own), (name, trained) in zip(given.items(), inputs.items(), strict=False)
    }


def _shown(answer: dict[str, Any], text: str) -> str:
    """An answer as a line: what was decided, how sure the model is, the text."""
    match answer:
        case {"label": label, "probability": probability}:
            said = f"{label}\t{probability:.3f}"
        case {"labels": labels, "probabilities": shares}:
            said = ", ".join(f"{name} {shares[name]:.3f}" for name in labels) or "none"
        case {"number": number}:
            said = f"{number:.4g}"
        case {"words": words, "tags": tags}:
            return " ".join(f"{word}/{tag or NOT_READ}" for word, tag in zip(words, tags, strict=True))
        case {"embedding": vector}:
            first = ", ".join(f"{number:.3f}" for number in vector[:SHOWN])
            said = f"{len(vector)} numbers: {first}{', ...' if len(vector) > SHOWN else ''}"
        case {"answer": found}:
            said = found or "no answer"
    return f"{said}\t{' '.join(text.split())[:100]}"
