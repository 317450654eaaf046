"""What the plots share: a chart is a Vega-Lite specification and its rows.

The rows stand beside the specification, under the name "rows", so that the page's filters can pass on some of them.
A colour is written as `var(--name)`: the page puts the light or the dark one in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report import VARIANTS

SHAPES = {"dense": "circle", "sparse": "square", "int8": "triangle-up", "int8_sparse": "diamond"}
COLOURS = [f"var(--series-{i})" for i in range(1, 9)]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A plot. tags: what the filters look at, such as {"task": "r8"}; text: what it shows, for those who do not see it."""

    id: str
    title: str
    text: str
    spec: dict[str, Any]
    rows: Rows
    tags: dict[str, str] = field(default_factory=dict)


def by_variant(channel: str, names: Sequence[str], legend: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A colour or a shape for each variant; it is the same in every plot. names: as they are shown."""
    keys = {label: key for key, label in VARIANTS.items()}
    found = [SHAPES[keys[n]] if channel == "shape" else f"var(--{keys[n].replace('_', '-')})" for n in names]
    return {"field": "shown", "type": "nominal", "scale": {"domain": list(names), "range": found}, "legend": legend}


def spec(height: int, **parts: Any) -> dict[str, Any]:
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "rows"},
        **parts,
    }


def tooltip(*pairs: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Lines of a tooltip. pairs: field, title, format (none for a text)."""
    return [
        {"field": name, "title": title, **({"format": form, "type": "quantitative"} if form else {"type": "nominal"})}
        for name, title, form in pairs
    ]
