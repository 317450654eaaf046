"""Every plot of the page as a Vega-Lite specification.

A chart's rows stand beside its specification, under the name "rows", so that the page's filters can pass on some of them.
A colour is written as `var(--name)`: the page puts the light or the dark one in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.curves import Curve
from pipeline.report.pareto import dominated
from pipeline.report.table import VARIANTS, Row

SHAPES = {"dense": "circle", "sparse": "square", "int8": "triangle-up", "int8_sparse": "diamond"}
SIZES = {"int8_sparse": 300, "dense": 140, "sparse": 120, "int8": 90}  # of the marks; what comes first lies below
LEGEND = {"orient": "top", "title": None, "columns": 2, "symbolSize": 110, "labelLimit": 150}
PARTS = ("loss", "hard", "soft", "hidden", "attention")
COLOURS = [f"var(--series-{i})" for i in range(1, 9)]
OPERATORS = 7  # that have a colour of their own; the others are summed up
UNITS = {"packed_bytes": ("megabytes", 1e-6), "median_ms": ("ms", 1.0)}
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


def _variant(channel: str, names: Sequence[str], legend: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A colour or a shape for each variant; it is the same in every plot. names: as they are shown."""
    keys = {label: key for key, label in VARIANTS.items()}
    found = [SHAPES[keys[n]] if channel == "shape" else f"var(--{keys[n].replace('_', '-')})" for n in names]
    return {"field": "shown", "type": "nominal", "scale": {"domain": list(names), "range": found}, "legend": legend}


def _spec(height: int, **parts: Any) -> dict[str, Any]:
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "rows"},
        **parts,
    }


def _axis(field_: str, title: str, **axis: Any) -> dict[str, Any]:
    return {"field": field_, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}, "axis": axis}


def _tip(*pairs: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Lines of a tooltip. pairs: field, title, format (none for a text)."""
    return [
        {"field": name, "title": title, **({"format": form, "type": "quantitative"} if form else {"type": "nominal"})}
        for name, title, form in pairs
    ]


def trade_off(task: str, rows: Sequence[Row], cost: str, title: str) -> Chart:
    """Score against a cost: points with their intervals, and a line along the Pareto front."""
    unit, factor = UNITS[cost]
    beaten = [", ".join(VARIANTS[name] for name in names) for names in dominated(rows, cost)]
    points: Rows = [
        {
            "variant": row["variant"],
            "shown": VARIANTS[row["variant"]],
            "cost": row[cost] * factor,
            **{key: row[key] for key in ("score", "score_low", "score_high")},
            "front": not names,
            "dominated": names or "nothing: it is on the front",
        }
        for row, names in zip(rows, beaten, strict=True)
    ]
    shown = [point["shown"] for point in points]
    x, score = _axis("cost", title, tickCount=6), _axis("score", rows[0]["metric"], format=".1%", tickCount=5)
    colour, shape = (_variant(channel, shown, LEGEND) for channel in ("color", "shape"))
    tip = _tip(
        ("shown", "variant", ""),
        ("score", rows[0]["metric"], ".2%"),
        ("score_low", "interval from", ".1%"),
        ("score_high", "to", ".1%"),
        ("cost", unit, ".1f"),
        ("dominated", "dominated by", ""),
    )
    front = {
        "transform": [{"filter": "datum.front"}],
        "mark": {
            "type": "line",
            "interpolate": "step-after",
            "strokeDash": [4, 3],
            "color": "var(--muted)",
            "strokeWidth": 1.5,
        },
        "encoding": {"x": x, "y": score, "order": {"field": "cost"}},
    }
    interval = {
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55},
        "encoding": {"x": x, "y": {**score, "field": "score_low"}, "y2": {"field": "score_high"}, "color": colour},
    }
    # Two variants of one file have one place in a plot: the larger mark lies below the smaller one.
    size = {
        "field": "variant",
        "type": "nominal",
        "scale": {"domain": list(SIZES), "range": list(SIZES.values())},
        "legend": None,
    }
    below = {"field": "variant", "type": "nominal", "sort": list(SIZES)}
    point = {
        "mark": {"type": "point", "filled": True, "opacity": 1, "tooltip": True},
        "encoding": {"x": x, "y": score, "color": colour, "shape": shape, "size": size, "order": below, "tooltip": tip},
    }
    text = (
        f"{task}: {rows[0]['metric']} against {title}; {len(points)} models, {sum(p['front'] for p in points)} on the front."
    )
    return Chart(
        f"trade-{cost}-{task}",
        f"{rows[0]['metric']} against {title}",
        text,
        _spec(250, layer=[front, interval, point]),
        points,
    )


def heat_map(task: str, variant: str, cells: Rows) -> Chart:
    """Sparsity of each matrix: a column for each kind of matrix, a row for each layer."""
    names = list(dict.fromkeys(cell["matrix"] for cell in cells))
    layers = list(dict.fromkeys(cell["layer"] for cell in cells))
    base = {
        "x": {
            "field": "matrix",
            "type": "nominal",
            "sort": names,
            "title": None,
            "axis": {"labelAngle": -40, "labelLimit": 130},
        },
        "y": {"field": "layer", "type": "nominal", "sort": layers, "title": "layer"},
    }
    scale = {"domain": [0, 1], "range": ["var(--ramp-0)", "var(--ramp-1)"]}
    tip = _tip(("name", "matrix", ""), ("sparsity", "sparsity", ".3%"))
    rect = {
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 2, "cornerRadius": 3, "tooltip": True},
        "encoding": {
            **base,
            "color": {"field": "sparsity", "type": "quantitative", "scale": scale, "legend": None},
            "tooltip": tip,
        },
    }
    text = _cell_text(base, "sparsity", ".0%")
    low, high = (f(cell["sparsity"] for cell in cells) for f in (min, max))
    said = f"{task}, {VARIANTS[variant]}: {len(cells)} matrices, sparsity {low:.2%} to {high:.2%}."
    height = max(110, 26 * len(layers))
    tags = {"variant": variant}
    return Chart(
        f"heat-{variant}-{task}",
        f"{VARIANTS[variant]}: {_range(low, high)}",
        said,
        _spec(height, layer=[rect, text]),
        cells,
        tags,
    )


def _range(low: float, high: float) -> str:
    a, b = f"{low:.1%}", f"{high:.1%}"
    return a if a == b else f"{a} to {b}"


def _cell_text(base: Mapping[str, Any], field_: str, form: str) -> dict[str, Any]:
    """The number in a cell of a heat map, in a colour that is read on the cell's."""
    dark = "datum.share > 0.5" if field_ == "rows" else f"datum.{field_} > 0.5"
    colour = {"condition": {"test": dark, "value": "var(--on-ramp)"}, "value": "var(--ink)"}
    text = {"field": field_, "type": "quantitative", "format": form}
    return {"mark": {"type": "text", "fontSize": 11}, "encoding": {**base, "text": text, "color": colour}}


def confusion(task: str, variant: str, cells: Rows, shown: Sequence[str]) -> Chart:
    """Rows by label and decision; the colour is the share of the rows with that label."""
    base = {
        "x": {
            "field": "decided",
            "type": "nominal",
            "scale": {"domain": list(shown)},
            "title": "decided",
            "axis": {"labelAngle": -40, "labelLimit": 90},
        },
        "y": {
            "field": "label",
            "type": "nominal",
            "scale": {"domain": list(shown)},
            "title": "label",
            "axis": {"labelLimit": 90},
        },
    }
    scale = {"domain": [0, 1], "range": ["var(--ramp-0)", "var(--ramp-1)"]}
    tip = _tip(
        ("label", "label", ""), ("decided", "decided", ""), ("rows", "rows", ",d"), ("share", "of the label's rows", ".2%")
    )
    rect = {
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1, "tooltip": True},
        "encoding": {
            **base,
            "color": {"field": "share", "type": "quantitative", "scale": scale, "legend": None},
            "tooltip": tip,
        },
    }
    layers = [rect, _cell_text(base, "rows", "d")] if len(shown) <= 12 else [rect]
    right = sum(cell["rows"] for cell in cells if cell["right"])
    text = f"{task}, {VARIANTS[variant]}: labels against decisions; {right} rows on the diagonal."
    height = min(26 * len(shown), 20 * len(shown) + 100) if len(shown) > 12 else max(90, 28 * len(shown))
    spec = _spec(height, layer=layers, view={"fill": "var(--raised)"})
    return Chart(f"confusion-{variant}-{task}", VARIANTS[variant], text, spec, cells, {"variant": variant})


def expensive(times: Sequence[Mapping[str, float]]) -> list[str]:
    """The operators with the longest time in any of these calls, the longest first."""
    most = {name: max(found.get(name, 0.0) for found in times) for found in times for name in found}
    return sorted(most, key=lambda name: (-most[name], name))[:OPERATORS]


def operators(task: str, times: Mapping[str, Mapping[str, float]], named: Sequence[str]) -> Chart:
    """Where the time of a call goes: a bar for each variant, a colour for each named operator; the others are summed up."""
    rows: Rows = []
    for variant, found in times.items():
        parts = {name: found.get(name, 0.0) for name in named}
        parts["other"] = sum(ms for name, ms in found.items() if name not in named)
        whole = sum(found.values())
        rows += [
            {"variant": variant, "shown": VARIANTS[variant], "operator": name, "ms": ms, "share": ms / whole, "place": place}
            for place, (name, ms) in enumerate(parts.items())
            if ms
        ]
    domain = [*named, "other"]
    encoding = {
        "y": {
            "field": "shown",
            "type": "nominal",
            "sort": [VARIANTS[v] for v in times],
            "title": None,
            "axis": {"labelLimit": 130},
        },
        "x": {"field": "ms", "type": "quantitative", "stack": "zero", "title": "ms a call, while operators are timed"},
        "color": {
            "field": "operator",
            "type": "nominal",
            "scale": {"domain": domain, "range": [*COLOURS[: len(named)], "var(--series-other)"]},
            "legend": {"orient": "bottom", "title": None, "columns": 2, "labelLimit": 130},
        },
        "order": {"field": "place"},
        "tooltip": _tip(
            ("shown", "variant", ""), ("operator", "operator", ""), ("ms", "ms", ".3f"), ("share", "of the call", ".1%")
        ),
    }
    mark = {"type": "bar", "tooltip": True, "stroke": "var(--page)", "strokeWidth": 0.6, "height": {"band": 0.72}}
    text = f"{task}: time of a call by operator; the longest are {', '.join(named[:3])}."
    return Chart(
        f"operators-{task}",
        "Time of a call by operator",
        text,
        _spec(40 * len(times) + 70, mark=mark, encoding=encoding),
        rows,
    )


def percentiles(task: str, rows: Sequence[Row]) -> Chart:
    """p50, p90 and p99 of a call: a line from the first to the last, a mark at each."""
    names = {"p50": "median_ms", "p90": "p90_ms", "p99": "p99_ms"}
    points: Rows = [
        {"variant": r["variant"], "shown": VARIANTS[r["variant"]], "what": n, "ms": r[key]}
        for r in rows
        for n, key in names.items()
    ]
    shown = [VARIANTS[row["variant"]] for row in rows]
    y = {"field": "shown", "type": "nominal", "sort": shown, "title": None, "axis": {"labelLimit": 130}}
    colour = _variant("color", shown)
    line = {
        "mark": {"type": "line", "strokeWidth": 2, "opacity": 0.6},
        "encoding": {"y": y, "x": {"field": "ms", "type": "quantitative"}, "color": colour, "detail": {"field": "shown"}},
    }
    shapes = {"domain": list(names), "range": ["circle", "square", "diamond"]}
    point = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1, "tooltip": True},
        "encoding": {
            "y": y,
            "x": {"field": "ms", "type": "quantitative", "title": "ms a call", "scale": {"zero": True}},
            "color": colour,
            "shape": {
                "field": "what",
                "type": "nominal",
                "scale": shapes,
                "legend": {
                    "orient": "bottom",
                    "title": None,
                    "symbolFillColor": "var(--muted)",
                    "symbolStrokeColor": "var(--muted)",
                },
            },
            "tooltip": _tip(("shown", "variant", ""), ("what", "percentile", ""), ("ms", "ms", ".2f")),
        },
    }
    text = f"{task}: the median, the 90th and the 99th percentile of the time of a call, for {len(rows)} models."
    return Chart(
        f"percentiles-{task}", "p50, p90 and p99 of a call", text, _spec(40 * len(rows) + 70, layer=[line, point]), points
    )


def training(curve: Curve) -> list[Chart]:
    """The loss and its parts, the learning rate, and the sparsity where the training has one, each over steps."""
    name = f"{curve.stage}-{curve.task}" if curve.task else curve.stage
    groups = {"loss": curve.losses, **{key: [key] for key in ("learning_rate", "sparsity") if key in curve.columns}}
    titles = {"loss": "loss and its parts", "learning_rate": "learning rate", "sparsity": "sparsity"}
    return [_curve(f"curve-{name}-{key.replace('_', '-')}", titles[key], curve, columns) for key, columns in groups.items()]


def _curve(id_: str, title: str, curve: Curve, columns: Sequence[str]) -> Chart:
    rows: Rows = [
        {"step": step, "part": name, "value": value}
        for name in columns
        for step, value in zip(curve.steps, curve.columns[name], strict=True)
    ]
    order = sorted(columns, key=lambda name: PARTS.index(name) if name in PARTS else len(PARTS))
    colours = [COLOURS[PARTS.index(name) if name in PARTS else 0] for name in order]
    legend = {"orient": "top", "title": None, "symbolType": "stroke", "offset": 4} if len(order) > 1 else None
    form = ".0%" if columns[0] == "sparsity" else ".1~e" if columns[0] == "learning_rate" else ".3~g"
    scale = {"domain": [0, 1]} if columns[0] == "sparsity" else {"zero": True}
    axis = {"format": form, "tickCount": 5}
    encoding = {
        "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickCount": 5}},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": scale, "axis": axis},
        "color": {"field": "part", "type": "nominal", "scale": {"domain": order, "range": colours}, "legend": legend},
        "strokeDash": {
            "field": "part",
            "type": "nominal",
            "scale": {"domain": order, "range": [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4]][: len(order)]},
            "legend": legend,
        },
        "tooltip": _tip(("step", "step", ",d"), ("part", "curve", ""), ("value", "value", ".4~g")),
    }
    mark = {"type": "line", "strokeWidth": 2, "tooltip": True}
    where = f"{curve.stage} of {curve.task}" if curve.task else curve.stage
    last = ", ".join(f"{name} {curve.columns[name][-1]:.4g}" for name in order)
    text = f"{where}: {title} over {curve.steps[-1]} steps; at the end {last}."
    return Chart(id_, title, text, _spec(170, mark=mark, encoding=encoding), rows)
