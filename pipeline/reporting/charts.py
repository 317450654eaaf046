"""The plots of a task's models: score against a cost, sparsity of each matrix, labels against decisions."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import VARIANTS, Row
from pipeline.reporting.pareto import dominated
from pipeline.reporting.vega import Chart, Rows, by_variant, spec, tooltip

SIZES = {"int8_sparse": 300, "dense": 140, "sparse": 120, "int8": 90}  # of the marks
LEGEND = {"orient": "top", "title": None, "columns": 2, "symbolSize": 110, "symbolOpacity": 1, "labelLimit": 150}
RAMP = {"domain": [0, 1], "range": ["var(--ramp-0)", "var(--ramp-1)"], "interpolate": "rgb"}
TURN = 0.65  # from here on the ramp, in both schemes, the text of a cell has the other colour
UNITS = {"packed_bytes": ("megabytes", 1e-6), "median_ms": ("ms", 1.0)}


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
            "mark": SIZES[row["variant"]],
            "front": not names,
            "dominated": names or "nothing: it is on the front",
        }
        for row, names in zip(rows, beaten, strict=True)
    ]
    shown = [point["shown"] for point in points]
    x, score = _axis("cost", title, tickCount=6), _axis("score", rows[0]["metric"], format=".1%", tickCount=5)
    colour, shape = (by_variant(channel, shown, LEGEND) for channel in ("color", "shape"))
    tip = tooltip(
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
    size = {"field": "mark", "type": "quantitative", "scale": None, "legend": None}
    below = {"field": "mark", "type": "quantitative", "sort": "descending"}
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
        spec(250, layer=[front, interval, point]),
        points,
    )


def _axis(field_: str, title: str, **axis: Any) -> dict[str, Any]:
    return {"field": field_, "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}, "axis": axis}


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
    tip = tooltip(("name", "matrix", ""), ("sparsity", "sparsity", ".3%"))
    rect = {
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 2, "cornerRadius": 3, "tooltip": True},
        "encoding": {
            **base,
            "color": {"field": "sparsity", "type": "quantitative", "scale": RAMP, "legend": None},
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
        spec(height, layer=[rect, text]),
        cells,
        tags,
    )


def _range(low: float, high: float) -> str:
    a, b = f"{low:.1%}", f"{high:.1%}"
    return a if a == b else f"{a} to {b}"


def _cell_text(base: Mapping[str, Any], field_: str, form: str) -> dict[str, Any]:
    """The number in a cell of a heat map, in a colour that is read on the cell's."""
    shown = "share" if field_ == "rows" else field_
    colour = {"condition": {"test": f"datum.{shown} > {TURN}", "value": "var(--on-ramp-1)"}, "value": "var(--on-ramp-0)"}
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
    tip = tooltip(
        ("label", "label", ""), ("decided", "decided", ""), ("rows", "rows", ",d"), ("share", "of the label's rows", ".2%")
    )
    rect = {
        "mark": {"type": "rect", "stroke": "var(--page)", "strokeWidth": 1, "tooltip": True},
        "encoding": {
            **base,
            "color": {"field": "share", "type": "quantitative", "scale": RAMP, "legend": None},
            "tooltip": tip,
        },
    }
    layers = [rect, _cell_text(base, "rows", "d")] if len(shown) <= 12 else [rect]
    right = sum(cell["rows"] for cell in cells if cell["right"])
    text = f"{task}, {VARIANTS[variant]}: labels against decisions; {right} rows on the diagonal."
    height = min(26 * len(shown), 20 * len(shown) + 100) if len(shown) > 12 else max(90, 28 * len(shown))
    drawn = spec(height, layer=layers, view={"fill": "var(--raised)"})
    return Chart(f"confusion-{variant}-{task}", VARIANTS[variant], text, drawn, cells, {"variant": variant})
