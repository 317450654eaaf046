"""answer texts with an exported model: labels and probabilities, without torch"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pruneonce.commands import inspect

EXAMPLES = (
    'pruneonce predict int8.packed --text "oil prices rose in the gulf today"',
    "pruneonce predict int8.packed --file reviews.csv --column body --json > answers.jsonl",
    'pruneonce predict models:/pruneonce-r8@champion --text "wheat exports fell"',
)

SHOWN = 4  # numbers of a vector, on a line
NOT_READ = "?"  # in place of the tag of a word that the model did not read


def options(parser: argparse.ArgumentParser) -> None:
    inspect.how(parser, ("auto", "stock", "sparse"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", action="append", help="a text, or a question; may be given several times")
    what.add_argument("--file", dest="rows", type=Path, help="csv, tsv, jsonl, or txt with a text a line; -: standard input")
    parser.add_argument("--pair", action="append", help="the second text of each --text, or the context of a question")
    parser.add_argument("--column", help="of the text in --file; default: as in training, else text")
    parser.add_argument("--pair-column", help="of the second text in --file; default: as in training, else pair")
    parser.add_argument("--json", action="store_true", help="an object a line, with every probability")


def lines(args: argparse.Namespace) -> Iterator[str]:
    from pruneonce.errors import PackError
    from pruneonce.serving.predictor import Predictor, input_names  # imports numpy, onnx, onnxruntime

    if str(args.file).startswith("models:"):  # the project's command has put a file in its place
        raise PackError(
            f"expected a model file here, found {args.file}. A registered model is found in the folder of its project: "
            "change to it. It needs the extra [pipeline]. In a clone, install pruneonce from the clone."
        )
    predictor = Predictor(args.file, threads=args.threads, execution=args.execution)
    names = input_names(predictor.about)
    trained = [predictor.about["columns"][part] for part in ("text", "pair")]
    for number, row in enumerate(_rows(args, [*zip(names, trained, strict=False)])):
        answer = predictor.answer(row, number)
        yield json.dumps(answer, ensure_ascii=False) if args.json else _shown(answer, row[0])


def _rows(args: argparse.Namespace, inputs: Sequence[tuple[str, str | None]]) -> Iterable[Sequence[Any]]:
    """The texts of each row. inputs: the name of each input of the model, and the column that it was trained on."""
    from pruneonce.errors import DataError
    from pruneonce.serving import rows

    if args.text:
        pairs = args.pair or []
        if len(pairs) != (len(args.text) if len(inputs) == 2 else 0):
            needs = "one --pair for each --text" if len(inputs) == 2 else "no --pair: the model reads one text"
            raise DataError(f"expected {needs}, found {len(args.text)} --text and {len(pairs)} --pair.")
        return [*zip(args.text, pairs, strict=True)] if pairs else [(text,) for text in args.text]
    given = (args.column, args.pair_column)
    columns = [(own,) if own else (trained or name, name) for own, (name, trained) in zip(given, inputs, strict=False)]
    return rows.read(args.rows, columns)


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
