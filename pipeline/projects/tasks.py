"""The block of a task in params.yaml: from a file of rows and its columns, checked as `prepare_task` will read them."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.comments import CommentedMap

from pipeline.params.document import GATES, Params, in_words, merged
from pipeline.params.metrics import METRICS
from pipeline.params.sections import PrepareTask
from pipeline.plan import costs
from pruneonce import columns
from pruneonce.errors import ConfigError, DataError
from pruneonce.sources import tables
from pruneonce.tasks import classes, examples, kinds

NAME = re.compile("[^A-Za-z0-9_-]+")
STEPS = {"teach_task": 300, "finetune": 320, "quantize": 70}  # as of the default tasks, about
# To compare two texts is harder to learn: docs/generality.md, "Pairs of texts".
PAIR_STEPS = {"teach_task": 600, "finetune": 750, "quantize": 150}
PAIR_RATE = 1.0e-4  # of the dense teacher: at the recipe's 2e-4, three of six teachers stayed at chance
MOST_EPOCHS = 10.0
FEW_ROWS = 20  # of a class: with fewer, a split has one or two of them
DROP, DROP_ROWS = 0.03, 900  # of gates.most_score_drop: with so many test rows, about that of the default tasks
EMBEDDING_DROP = 0.17  # more, of a correlation with the dense encoder: `sentences` of the default profile has 0.87
MUCH = 0.05  # share of texts that are cut
BYTES_PER_TOKEN = 4  # of short texts, about, special tokens counted
# Seconds of a step of MiniLM-L6 at 16 rows of 64 tokens, and of export and evaluation; on two cores with AMX, see the
# quickstart's costs.
STEP_TOKENS = 64
STEP_SECONDS = {"teach_task": 0.22, "finetune": 0.28, "quantize": 0.5}
CLOSING_SECONDS = 100


@dataclass(frozen=True)
class Chosen:
    """A task that is to be added. path: the file of rows, as this process reads it."""

    name: str
    path: Path
    text: str
    label: str | None  # None: an embedding needs none
    kind: str
    pair: str | None = None


def name_of(path: Path) -> str:
    """A task's name from the name of its file: letters, digits, _ and -."""
    return NAME.sub("-", path.stem).strip("-_").lower()[:100] or "task"


def section(chosen: Chosen) -> dict[str, Any]:
    """The keys of `prepare_task` of the task that differ from the recipe."""
    keys: dict[str, Any] = {"source": chosen.name, "text": chosen.text, "label": chosen.label}
    if chosen.pair:
        keys["pair"] = chosen.pair
    if chosen.kind != "classification":
        keys |= {"kind": chosen.kind, "metric": METRICS[chosen.kind][0]}
    return keys


def gates(kind: str, test_rows: int) -> dict[str, Any]:
    """The gates that other tasks' numbers do not fit: the score is not known yet, and few rows have a wide interval."""
    drop = DROP * max(1.0, DROP_ROWS / test_rows) ** 0.5 + (EMBEDDING_DROP if kind == "embedding" else 0.0)
    return {"least_score": None, "most_score_drop": round(drop, 2)}


def blocks(chosen: Chosen, place: str, training: dict[str, dict[str, Any]], gates: dict[str, Any]) -> CommentedMap:
    """The sections `fetch_local` and `tasks` with this one entry. place: the path of the file from the project's folder."""
    task = CommentedMap({"prepare_task": _braces(section(chosen))})
    for stage in STEPS:
        task[stage] = _braces(training[stage])
    task[GATES] = _braces(gates)
    source = {"path": place, "members": _braces({f"train{chosen.path.suffix}": "."}), "sha256": None}
    return CommentedMap(
        {
            "fetch_local": CommentedMap({chosen.name: _braces(source)}),
            "tasks": CommentedMap({chosen.name: task}),
        }
    )


def _braces(keys: dict[str, Any]) -> CommentedMap:
    written = CommentedMap(keys)
    written.fa.set_flow_style()
    return written


def training(chosen: Chosen, recipes: Mapping[str, Any], train_rows: int) -> dict[str, dict[str, Any]]:
    """The keys of each stage that trains: epochs for about STEPS or PAIR_STEPS steps.

    Pairs also get room for both texts, and a rate at which their dense teacher learns.

    A file of few rows is read MOST_EPOCHS times at most. recipes: by their stages, and `prepare_task`.
    """
    found: dict[str, dict[str, Any]] = {}
    compared = chosen.pair is not None and chosen.kind != "embedding"
    rows = costs.encoded(train_rows, chosen.kind, chosen.pair)
    for stage, steps in (PAIR_STEPS if compared else STEPS).items():
        epochs = min(MOST_EPOCHS, steps * recipes[stage]["batch_size"] / rows)
        found[stage] = {"epochs": max(0.01, float(f"{epochs:.2g}"))}
    if compared:
        for stage, keys in found.items():
            keys["max_tokens"] = max(recipes[stage]["max_tokens"], recipes["prepare_task"]["max_tokens"])
        found["teach_task"]["learning_rate"] = min(PAIR_RATE, recipes["teach_task"]["learning_rate"])
    return found


@dataclass(frozen=True)
class Survey:
    """What `prepare_task` will find in a file."""

    rows: int
    splits: dict[str, list[examples.Example]]
    dropped: dict[str, int]  # reason: rows
    classes: dict[str, int]  # of all splits; empty for kinds without
    lengths: list[int]  # of the texts in tokens, about

    @property
    def train(self) -> int:
        return len(self.splits["train"])


def survey(chosen: Chosen, recipe: Mapping[str, Any], *, seed: int) -> Survey:
    """Read and split the rows as the stage will. Raises ConfigError, DataError for what the stage would refuse."""
    try:
        settings = PrepareTask.model_validate(merged(recipe, section(chosen)))
    except ValidationError as error:
        raise ConfigError(
            f"expected a {chosen.kind} of the columns of {chosen.path}, found: {in_words(error, 'its section')}. Give "
            "--kind, or --pair with the column of the second text."
        ) from None
    family = kinds.KINDS[settings.kind]
    rows = [*tables.read_as(chosen.path, settings.columns, family.reader(settings), skip_rows=settings.skip_rows)]
    ratios = {"validation_ratio": settings.validation_ratio, "test_ratio": settings.test_ratio}
    splits, dropped = examples.make_splits({"train": rows, "validation": None, "test": None}, **ratios, seed=seed)
    kind = family.from_rows(settings, *splits.values())
    every = list(chain(*splits.values()))
    counts = Counter(chain(*map(kind.classes_of, every))) if isinstance(kind, classes.ClassKind) else Counter[str]()
    return Survey(
        rows=len(rows),
        splits=splits,
        dropped={reason: count for reason, count in vars(dropped["train"]).items() if count},
        classes=dict(counts.most_common()),
        lengths=sorted(sum(len(text.encode()) // BYTES_PER_TOKEN + 2 for text in row.texts) for row in every),
    )


def findings(chosen: Chosen, found: Survey, p: Params) -> Iterator[str]:
    """What a person should know of the data: counts first, then what may be a fault."""
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in found.splits.items())
    yield f"{chosen.path}: {found.rows:,} rows; {sizes}"
    left = {"empty": "without a text or a label", "duplicate": "whose text stands above already"}
    yield from (f"  left out: {count:,} {left.get(reason, reason)}" for reason, count in found.dropped.items())
    if found.classes:
        shown = [f"{name} {count:,}" for name, count in list(found.classes.items())[:8]]
        more = f", and {len(found.classes) - 8} more" if len(found.classes) > 8 else ""
        yield f"  classes: {', '.join(shown)}{more}"
        if few := [name for name, count in found.classes.items() if count < FEW_ROWS]:
            some = ", ".join(few[:5]) + (" ..." if len(few) > 5 else "")
            yield f"  warning: fewer than {FEW_ROWS} rows of {some}: scores of them say little"
    middle, high = (found.lengths[round(q * (len(found.lengths) - 1))] for q in (0.5, 0.95))
    yield f"  tokens of a text: about {middle} (median), {high} (95 %)"
    recipe = p.prepare_task["max_tokens"]
    share = sum(length > recipe for length in found.lengths) / len(found.lengths)
    if share > MUCH:
        yield f"  warning: about {share:.0%} are longer than prepare_task.max_tokens, {recipe}, and are cut"


def cost(p: Params, name: str, found: Survey) -> str:
    """One line: steps, and for the default model about how long they take."""
    steps, seconds = {}, float(CLOSING_SECONDS)
    for stage in STEPS:
        training: Any = p.section(stage, name)
        steps[stage] = costs.steps(stage, name, p, found.train)
        seconds += steps[stage] * STEP_SECONDS[stage] * training.max_tokens / STEP_TOKENS
    said = ", ".join(f"{stage} {count}" for stage, count in steps.items())
    time = f"; about {max(1, round(seconds / 60))} minutes on two cores with AMX" if p.common.model == "minilm-l6" else ""
    return f"Steps of the task: {said}{time}."


def choose(
    path: Path, *, name: str | None, text: str | None, label: str | None, pair: str | None, kind: str | None
) -> tuple[Chosen | None, columns.Guess]:
    """The task with the columns that are given or guessed; None if something cannot be guessed. Raises DataError."""
    found = columns.guess(path, text=text, label=label)
    if pair is not None and pair not in found.columns:
        raise DataError(f"expected column {pair!r} in {path}, found columns {list(found.columns)}.")
    kind = kind or found.kind
    if kind == "embedding" and found.text is not None:  # of plain text: no column is taken for a class unless it is given
        return Chosen(name or name_of(path), path, found.text, label, kind, pair), found
    if found.text is None or found.label is None or kind is None:
        return None, found
    return Chosen(name or name_of(path), path, found.text, found.label, kind, pair), found


def unclear(path: Path, found: columns.Guess) -> ConfigError:
    """What has to be said because it cannot be guessed."""
    wanted = []
    if found.text is None:
        wanted.append(f"--text, one of {list(found.texts) or list(found.columns)}")
    if found.label is None:
        wanted.append(f"--label, one of {list(found.labels) or list(found.columns)}")
    elif found.kind is None:
        distinct = found.columns[found.label].distinct
        wanted.append(f"--kind, one of {list(METRICS)}: label {found.label!r} has {distinct} different values")
    return ConfigError(
        f"expected columns of {path} whose meaning is clear, found several or none. Give {' and '.join(wanted)}."
    )
