"""What the heat maps show: the sparsity of each matrix, and which class was taken for which."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

MOST_CLASSES = 24  # more do not fit a page; then the most confused ones are shown


def sparsity_cells(sparsity_of: Mapping[str, float]) -> list[dict[str, Any]]:
    """A cell for each matrix: its layer (the first number in its name), what it is inside the layer, and its sparsity."""
    cells = []
    for name, sparsity in sparsity_of.items():
        match = re.search(r"\.(\d+)\.", name)
        layer, inside = (match[1], name[match.end() :]) if match else ("-", name)
        cells.append({"name": name, "layer": layer, "matrix": inside.removesuffix(".dense"), "sparsity": sparsity})
    return cells


def confusion(labels: Sequence[int], decisions: Sequence[int]) -> Counter[tuple[int, int]]:
    """(class of the label, class that was decided) -> rows."""
    return Counter(zip(labels, decisions, strict=True))


def shown_classes(classes: Sequence[str], counts: Sequence[Counter[tuple[int, int]]]) -> list[int]:
    """Indexes of the classes to draw: all, or those that stand in most errors of these matrices, in their order."""
    if len(classes) <= MOST_CLASSES:
        return list(range(len(classes)))
    errors = Counter[int]()
    for count in counts:
        for (label, decided), rows in count.items():
            if label != decided:
                errors.update({label: rows, decided: rows})
    most = sorted(range(len(classes)), key=lambda index: (-errors[index], index))[:MOST_CLASSES]
    return sorted(most)


def confusion_cells(
    count: Counter[tuple[int, int]], classes: Sequence[str], shown: Sequence[int]
) -> list[dict[str, str | int | float]]:
    """A cell for each pair of shown classes with rows in it. share: of the rows with that label."""
    rows_of = Counter[int]()
    for (label, _), rows in count.items():
        rows_of[label] += rows
    return [
        {"label": classes[a], "decided": classes[b], "rows": count[a, b], "share": count[a, b] / rows_of[a], "right": a == b}
        for a in shown
        for b in shown
        if count[a, b]
    ]


def class_rows(
    labels: Sequence[int], decisions: Mapping[str, Sequence[int]], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The same as a table: for each class its rows, and how many of them each variant decides right."""
    counts = {variant: confusion(labels, found) for variant, found in decisions.items()}
    rows_of = Counter(labels)
    return [
        {"class": name, "rows": rows_of[i], "right": {variant: count[i, i] for variant, count in counts.items()}}
        for i, name in enumerate(classes)
    ]
