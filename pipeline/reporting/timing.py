"""The plots of a call's time: by operator, and its percentiles."""

from collections.abc import Mapping, Sequence

from pipeline.report import VARIANTS, Row
from pipeline.reporting.vega import COLOURS, Chart, Rows, by_variant, spec, tooltip

OPERATORS = 7  # that have a colour of their own; the others are summed up


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
        "tooltip": tooltip(
            ("shown", "variant", ""), ("operator", "operator", ""), ("ms", "ms", ".3f"), ("share", "of the call", ".1%")
        ),
    }
    mark = {"type": "bar", "tooltip": True, "stroke": "var(--page)", "strokeWidth": 0.6, "height": {"band": 0.72}}
    text = f"{task}: time of a call by operator; the longest are {', '.join(named[:3])}."
    return Chart(
        f"operators-{task}",
        "Time of a call by operator",
        text,
        spec(40 * len(times) + 70, mark=mark, encoding=encoding),
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
    colour = by_variant("color", shown)
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
            "tooltip": tooltip(("shown", "variant", ""), ("what", "percentile", ""), ("ms", "ms", ".2f")),
        },
    }
    text = f"{task}: the median, the 90th and the 99th percentile of the time of a call, for {len(rows)} models."
    return Chart(
        f"percentiles-{task}", "p50, p90 and p99 of a call", text, spec(40 * len(rows) + 70, layer=[line, point]), points
    )
