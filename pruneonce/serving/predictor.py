"""A model that answers text: one exported file, packed or not, with its tokenizer and labels inside."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneonce.deployment import execution as running
from pruneonce.deployment import unpacking
from pruneonce.deployment.about import entries, parse
from pruneonce.deployment.provenance import ABOUT, TOKENIZER
from pruneonce.errors import DataError, PackError
from pruneonce.serving import answers
from pruneonce.serving.answers import Answer
from pruneonce.serving.texts import QUESTION_ROOM, Texts
from pruneonce.sources import cells

MOST_CHARACTERS = 100_000  # of a text: splitting a longer one takes seconds

MOST_TOKENS = 1_000_000  # of a text, by what a file says of itself

KINDS: dict[str, set[str]] = {  # what the metadata says of each kind of task, as far as answers need it
    "classification": {"classes"},
    "multi_label": {"classes"},
    "regression": set(),
    "token_classification": {"classes"},
    "embedding": set(),
    "question_answering": {"stride_tokens", "n_best", "max_answer_tokens", "null_threshold"},
}


def input_names(about: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model reads in a row. about: what its file says of itself."""
    if about["kind"]["kind"] == "question_answering":
        return "question", "context"
    # A pair of an embedding task is two texts that each have a vector.
    return ("text", "pair") if about["columns"]["pair"] and about["kind"]["kind"] != "embedding" else ("text",)


def _check(about: Mapping[str, Any], path: Path) -> None:
    """Anybody can write a file's metadata. Raises PackError for what is used here, if it is missing or another type."""
    kind, columns, most = about.get("kind"), about.get("columns"), about.get("max_tokens")
    good = {
        "max_tokens": _is_count(most, at_most=MOST_TOKENS) and most != 0,
        "kind": isinstance(kind, dict) and _is_kind(kind, most if isinstance(most, int) else 0),
        "columns": isinstance(columns, dict)
        and {"text", "pair"} <= columns.keys()
        and all(isinstance(columns[name], str | None) for name in ("text", "pair"))
        and not (isinstance(kind, dict) and kind.get("kind") == "token_classification" and columns["pair"]),
    }
    if wrong := [key for key, holds in good.items() if not holds]:
        raise PackError(
            f"expected the key {wrong[0]} as `export` writes it in what {path} says of itself, found "
            f"{str(about.get(wrong[0]))[:80]!r}. Export it again."
        )


def _is_kind(kind: Mapping[str, Any], max_tokens: int) -> bool:
    """Whether this is a kind of task with all that its answers need."""
    name, classes, threshold = kind.get("kind"), kind.get("classes"), kind.get("null_threshold")
    if not isinstance(name, str) or name not in KINDS or not KINDS[name] <= kind.keys():
        return False
    if "classes" in KINDS[name]:
        texts = isinstance(classes, list) and all(isinstance(each, str) for each in classes)
        return bool(texts and classes) and len(set(classes or ())) == len(classes or ())
    if name != "question_answering":
        return True
    counts = all(_is_count(kind[key], at_most=MOST_TOKENS) and kind[key] > 0 for key in ("n_best", "max_answer_tokens"))
    number = threshold is None or (isinstance(threshold, int | float) and not isinstance(threshold, bool))
    return counts and number and _is_count(kind["stride_tokens"], at_most=max_tokens // 2 - QUESTION_ROOM - 1)


def _is_count(value: object, *, at_most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= at_most


def _check_classes(outputs: object, kind: Mapping[str, Any], path: Path) -> None:
    """Raises PackError unless each output has a label. outputs: how many there are, or a name if it is not fixed."""
    if "classes" in KINDS[kind["kind"]] and isinstance(outputs, int) and outputs != len(kind["classes"]):
        found = f"{len(kind['classes'])} labels in what it says of itself"
        raise PackError(f"expected a label for each of the {outputs} outputs of {path}, found {found}. Export it again.")


# A text, or a pair: two texts; of a question: question and context. To be tagged, a list is the words of one text.
Input = str | Sequence[str]


class Predictor:
    """Answers texts. Every text runs alone, so its answer does not depend on what it is sent with.

    path: an ONNX file that `export` wrote, or the packed form of one. threads, execution: as in `pruneonce.load`.
    Raises PackError for a file that is damaged, or that does not say its task and its tokenizer.
    """

    def __init__(self, path: str | Path, *, threads: int = 0, execution: str = "auto"):
        path = Path(path)
        model = unpacking.model(path)
        metadata = entries(model)
        self.about = parse(metadata.get(ABOUT), str(path))
        tokenizer = metadata.get(TOKENIZER)
        if not self.about or tokenizer is None:
            lacks = "a tokenizer" if self.about else "its task, its labels and its tokenizer"
            raise PackError(
                f"expected a model that answers text, found that {path} does not say {lacks}. Files say it that `export` of "
                "this version wrote, with a tokenizer.json; for others there is `pruneonce.load`, which takes token ids."
            )
        _check(self.about, path)
        self.kind = self.about["kind"]
        self.texts = Texts(tokenizer, max_tokens=self.about["max_tokens"])
        self.session = running.session(model, threads=threads, execution=execution)
        self.inputs = [node.name for node in self.session.get_inputs()]
        _check_classes(self.session.get_outputs()[0].shape[-1], self.kind, path)

    def __call__(self, rows: Iterable[Input]) -> list[Answer]:
        """The answer to each row. Raises DataError, naming the row, for one that is no text, or too long."""
        if isinstance(rows, str | bytes):  # whose letters would be rows
            raise DataError(f"expected a list of texts, found {type(rows).__name__}. Put it into a list: [text].")
        return [self._answer(texts) for texts in [self._texts(row, f" in row {n}") for n, row in enumerate(rows)]]

    def answer(self, row: Input) -> Answer:
        """The answer to one row. Raises DataError as above."""
        return self._answer(self._texts(row))

    def _texts(self, row: Input, where: str = "") -> tuple[str, ...]:
        """The texts of a row, each as the splits have it; of a row to be tagged its words."""
        words = _words(row) if self.kind["kind"] == "token_classification" else None
        if words is not None:
            row = " ".join(words)
        texts = (row,) if isinstance(row, str) else tuple(row) if isinstance(row, Sequence) else (row,)
        names = input_names(self.about)
        if len(texts) != len(names) or not all(isinstance(text, str) for text in texts):
            expected = "a text" if len(names) == 1 else f"two texts ({' and '.join(names)})"
            found = ", ".join(type(text).__name__ for text in texts) or "nothing"
            raise DataError(f"expected {expected}{where}, found {found}.")
        if empty := [name for name, text in zip(names, texts, strict=True) if not text.strip()]:  # training drops such rows
            what = "second text" if empty[0] == "pair" else empty[0]
            raise DataError(f"expected a {what}{where}, found an empty one.")
        if any(re.search("[\ud800-\udfff]", text) for text in texts):  # of bytes on a command line, or of JSON's \\ud800
            raise DataError(f"expected Unicode{where}, found half of a surrogate pair. Write the text in UTF-8.")
        if (longest := max(map(len, texts))) > MOST_CHARACTERS:
            most = self.about["max_tokens"]
            reads = f"a context in windows of {most}" if names[-1] == "context" else f"the first {most}"
            raise DataError(
                f"expected at most {MOST_CHARACTERS} characters{where}, found {longest}. The model reads {reads} "
                "tokens: cut the text."
            )
        if self.kind["kind"] == "question_answering":  # positions of the answer refer to the context as it is
            return texts[0].strip(), texts[1]
        if self.kind["kind"] == "token_classification":
            return tuple(words or texts[0].split())
        return tuple(map(cells.text, texts))

    def _answer(self, texts: Sequence[str]) -> Answer:
        kind, classes = self.kind["kind"], self.kind.get("classes", [])
        text, pair = texts[0], texts[1] if len(texts) == 2 else None
        if kind == "token_classification":
            text, pair = " ".join(texts), None
        if kind == "question_answering":
            assert pair is not None
            rows = list(self.texts.windows(text, pair, stride_tokens=self.kind["stride_tokens"]))
            outputs = [self.session.run(["start_logits", "end_logits"], row.feeds(self.inputs)) for row in rows]
            return answers.span(
                [(row, *(o[0] for o in out)) for row, out in zip(rows, outputs, strict=True)], pair, self.kind
            )
        row = self.texts.row(text, pair)
        output = "embedding" if kind == "embedding" else "logits"
        logits: Any = self.session.run([output], row.feeds(self.inputs))[0][0]
        match kind:
            case "embedding":
                return answers.vector(logits)
            case "classification":
                return answers.label(logits, classes)
            case "multi_label":
                return answers.labels(logits, classes)
            case "token_classification":
                return answers.tags(logits, classes, row, texts)
            case _:
                return answers.number(logits)


def _words(row: Any) -> list[str] | None:
    """The words of a list, also in text, as `tasks.tagging` reads them in training; None for a text without one."""
    if isinstance(row, tuple) and len(row) == 1:  # a row of one column
        (row,) = row
    if not isinstance(row, list):
        with contextlib.suppress(DataError):  # a text in brackets is no list
            row = cells.parse_list(row)
    return [*map(cells.text, row)] if isinstance(row, list) and row else None
