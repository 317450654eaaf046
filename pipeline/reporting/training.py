"""The plots of a training over its steps."""

from collections.abc import Sequence

from pipeline.reporting.curves import Curve
from pipeline.reporting.vega import COLOURS, Chart, Rows, spec, tooltip

PARTS = ("loss", "hard", "soft", "hidden", "attention")


def plots(curve: Curve) -> list[Chart]:
    """The loss and its parts, the learning rate, and the sparsity where the training has one, each over steps."""
    name = f"{curve.stage}-{curve.task}" if curve.task else curve.stage
    groups: dict[str, list[str]] = {"loss": curve.losses}
    groups |= {key: [key] for key in ("learning_rate", "sparsity") if key in curve.columns}
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
        "tooltip": tooltip(("step", "step", ",d"), ("part", "curve", ""), ("value", "value", ".4~g")),
    }
    mark = {"type": "line", "strokeWidth": 2, "tooltip": True}
    where = f"{curve.stage} of {curve.task}" if curve.task else curve.stage
    last = ", ".join(f"{name} {curve.columns[name][-1]:.4g}" for name in order)
    text = f"{where}: {title} over {curve.steps[-1]} steps; at the end {last}."
    return Chart(id_, title, text, spec(170, mark=mark, encoding=encoding), rows)
