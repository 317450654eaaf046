"""Draw scores with their spread as SVG: one panel for each task, one line for each name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from study.comparison import spread

Point = tuple[float, Sequence[float]]  # where it lies on the x axis; its scores, one for each seed, in [0, 1]
Lines = Mapping[str, Sequence[Point]]  # by name


def draw(path: Path, panels: Mapping[str, Lines], *, xlabel: str, axis: Callable[[Any], None]) -> None:
    """panels: by task, all with the same lines. axis: sets the x axis of a panel. The same points give the same bytes."""
    import matplotlib as mpl  # importing it takes a second
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "pruneonce", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.5 * len(panels), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (task, lines) in zip(axes, panels.items(), strict=True):
            _draw_lines(panel, lines)
            panel.set(title=task, xlabel=xlabel, ylabel="test score, %")
            axis(panel)
            panel.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_lines(panel: Any, lines: Lines) -> None:
    """The spread of the seeds is drawn as bars."""
    for name, points in lines.items():
        panel.errorbar(
            [x for x, _ in points],
            [100 * fmean(scores) for _, scores in points],
            yerr=[100 * spread(scores) for _, scores in points],
            fmt="o-",
            linewidth=1,
            markersize=4,
            capsize=3,
            label=name,
        )


def logarithmic(panel: Any) -> None:
    """An x axis by factors, with ticks at 1, 2, 5, 10, 20 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set(xscale="log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def from_zero(panel: Any) -> None:
    """An x axis that begins at 0, so that lengths on it are ratios."""
    panel.set_xlim(left=0)
