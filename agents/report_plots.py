"""The plots of the report's page, as Bokeh figures: ends of episodes, groups of users, curves of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Model, Range1d
from bokeh.models.annotations import Legend, LegendItem, TeeHead, Title, Whisker
from bokeh.palettes import Category20_20
from bokeh.plotting import figure
from bokeh.transform import dodge

from agents.breakdown import EpisodeEnd
from agents.evaluate import AgentSummary
from agents.strata import DIMENSIONS, StratumEstimate
from agents.training_log import RunLogs, Series

END_COLORS = {
    EpisodeEnd.HIT: "#2e7d32",
    EpisodeEnd.RANKING_FAILURE: "#f9a825",
    EpisodeEnd.RETRIEVAL_FAILURE: "#1565c0",
    EpisodeEnd.MALFORMED: "#c62828",
}
_FAILURES = {
    EpisodeEnd.RANKING_FAILURE: "Ranking failure",
    EpisodeEnd.RETRIEVAL_FAILURE: "Retrieval failure",
    EpisodeEnd.MALFORMED: "Format failure",
}
CURVES = ("reward_mean", "hit_rate", "ndcg_at_10", "pool_recall", "num_searches", "format_ok_rate")
"""The scalars `rollout/…` that are drawn, all runs in one plot each."""
TERMS_PREFIX = "reward/"
LOSS_PREFIX = "loss/"
MAX_POINTS = 1000
"""Of one line; a longer one is thinned."""
SMOOTH_FROM = 20
"""A curve with so many points has its rolling mean over a tenth of them drawn boldly."""
_MAX_LABEL = 28
_AXES = {dimension.name: dimension.axis for dimension in DIMENSIONS}
_STRONG, _LIGHT = Category20_20[::2], Category20_20[1::2]
_COLORS = (*_STRONG[4:], *_STRONG[:4], *_LIGHT[4:], *_LIGHT[:4])


def color_of(place: int) -> str:
    """Return the colour of an agent, run or term by its place; the first six are none of END_COLORS."""
    return _COLORS[place % len(_COLORS)]


def plot_ends(summaries: Sequence[AgentSummary]) -> Model:
    """Return a bar an agent: the shares of hits and of each kind of failure."""
    agents = _labels([summary.agent for summary in summaries])
    columns: dict[str, list[float]] = {}
    for end, name in _FAILURES.items():
        columns[end] = [summary.details[name].mean if name in summary.details else 0.0 for summary in summaries]
    hits = [1.0 - sum(column[place] for column in columns.values()) for place in range(len(agents))]
    source = ColumnDataSource({"agent": agents, EpisodeEnd.HIT: hits, **columns})
    plot = _figure(
        "What became of the episodes",
        height=90 + 26 * len(agents),
        y_range=FactorRange(factors=agents[::-1]),
        x_range=(0, 1),
    )
    ends = list(END_COLORS)
    plot.hbar_stack(
        ends,
        y="agent",
        height=0.7,
        source=source,
        color=list(END_COLORS.values()),
        legend_label=[end.replace("_", " ") for end in ends],
    )
    tooltips = [("agent", "@agent"), *((end.replace("_", " "), f"@{end}{{0.000}}") for end in ends)]
    plot.add_tools(HoverTool(tooltips=tooltips))
    plot.xaxis.axis_label = "share of users"
    _put_legend_below(plot)
    return plot


def plot_strata(strata: Sequence[StratumEstimate], metric: str) -> list[Model]:
    """Return a plot a dimension: each agent's mean and interval in each group of users.

    Args:
        strata: of one data set and split.
        metric: one of their metrics.
    """
    agents = list(dict.fromkeys(entry.agent for entry in strata))
    plots: list[Model] = []
    for dimension in dict.fromkeys(entry.stratum.dimension for entry in strata):
        entries = [entry for entry in strata if entry.stratum.dimension == dimension]
        groups = list(dict.fromkeys(entry.stratum.label for entry in entries))
        plot = _figure(f"{metric}: {dimension}", x_range=FactorRange(factors=groups))
        plot.xaxis.axis_label = _AXES.get(dimension, dimension)
        plot.y_range = Range1d(start=0, end=1.05 * max(entry.metrics[metric].high for entry in entries) or 1.0)
        for place, agent in enumerate(agents):
            mine = [entry for entry in entries if entry.agent == agent]
            _draw_estimates(plot, mine, metric, place, len(agents))
        plot.add_tools(
            HoverTool(
                tooltips=[("agent", "@agent"), ("users", "@users"), ("mean", "@mean{0.000} (@low{0.000}–@high{0.000})")]
            )
        )
        plot.xgrid.visible = False
        plots.append(plot)
    return plots


def _draw_estimates(plot: figure, entries: Sequence[StratumEstimate], metric: str, place: int, num_agents: int) -> None:
    source = ColumnDataSource(
        {
            "group": [entry.stratum.label for entry in entries],
            "agent": [entry.agent for entry in entries],
            "users": [entry.num_users for entry in entries],
            "mean": [entry.metrics[metric].mean for entry in entries],
            "low": [entry.metrics[metric].low for entry in entries],
            "high": [entry.metrics[metric].high for entry in entries],
        }
    )
    offset = dodge("group", 0.7 * ((place + 0.5) / num_agents - 0.5), range=plot.x_range)
    color = color_of(place)
    plot.scatter(x=offset, y="mean", source=source, size=8, color=color)
    whisker = Whisker(base=offset, lower="low", upper="high", source=source, line_color=color, line_width=1.5)
    whisker.upper_head = TeeHead(size=5, line_color=color)
    whisker.lower_head = TeeHead(size=5, line_color=color)
    plot.add_layout(whisker)


def plot_curves(runs: Sequence[RunLogs]) -> list[Model]:
    """Return a plot for each of CURVES that a run has logged, with a line a run."""
    plots = []
    for name in CURVES:
        lines = {run.name: run.scalars[f"rollout/{name}"] for run in runs if f"rollout/{name}" in run.scalars}
        if lines:
            plots.append(_plot_lines(f"rollout/{name}", lines, places=_places(runs)))
    return plots


def plot_terms(runs: Sequence[RunLogs]) -> list[Model]:
    """Return a plot a run: what each reward term paid, by step."""
    tags = sorted({tag for run in runs for tag in run.scalars if tag.startswith(TERMS_PREFIX)})
    places = {tag.removeprefix(TERMS_PREFIX): place for place, tag in enumerate(tags)}
    plots = []
    for run in runs:
        lines = {tag.removeprefix(TERMS_PREFIX): run.scalars[tag] for tag in tags if tag in run.scalars}
        if lines:
            plots.append(_plot_lines(f"Reward terms, {run.name}", lines, places=places))
    return plots


def plot_losses(runs: Sequence[RunLogs]) -> list[Model]:
    """Return a plot for each scalar `loss/…`, with a line a run."""
    tags = sorted({tag for run in runs for tag in run.scalars if tag.startswith(LOSS_PREFIX)})
    return [
        _plot_lines(tag, {run.name: run.scalars[tag] for run in runs if tag in run.scalars}, places=_places(runs))
        for tag in tags
    ]


def _places(runs: Sequence[RunLogs]) -> dict[str, int]:
    return {run.name: place for place, run in enumerate(runs)}


def _plot_lines(title: str, lines: Mapping[str, Series], *, places: Mapping[str, int]) -> Model:
    plot = _figure(title)
    plot.xaxis.axis_label = "step"
    items = []
    for name, series in lines.items():
        steps, values = _thinned(series)
        color = color_of(places[name])
        smooth = len(steps) >= SMOOTH_FROM
        source = ColumnDataSource({"step": steps, "value": values, "name": [name] * len(steps)})
        line = plot.line("step", "value", source=source, color=color, line_width=1.5, alpha=0.35 if smooth else 1.0)
        drawn: list[Any] = [line]
        if smooth:
            mean = _rolling_mean(values, max(2, len(values) // 10))
            drawn.append(plot.line(steps, mean, color=color, line_width=2.5))
        plot.add_tools(
            HoverTool(renderers=[line], tooltips=[("", "@name"), ("step", "@step"), ("value", "@value{0.0000}")])
        )
        items.append(LegendItem(label=_short(name), renderers=drawn))
    legend = Legend(items=items, click_policy="hide", orientation="horizontal", ncols=2)
    plot.add_layout(legend, "below")
    _style_legend(legend)
    return plot


def _thinned(series: Series) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(series[0]), np.array(series[1])
    if steps.size <= MAX_POINTS:
        return steps, values
    kept = np.unique(np.linspace(0, steps.size - 1, MAX_POINTS).round().astype(int))
    return steps[kept], values[kept]


def _rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the window around each value, of what there is of it at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, mode="same") / np.convolve(np.ones_like(values), ones, mode="same")


def _figure(title: str, *, height: int = 280, **ranges: Any) -> figure:
    plot = figure(
        title=Title(text=title, text_font_size="13px"),
        height=height,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        toolbar_location="right",
        **ranges,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.min_width = 260
    plot.grid.grid_line_alpha = 0.4
    return plot


def _put_legend_below(plot: figure) -> None:
    (legend,) = plot.legend
    legend.orientation = "horizontal"
    plot.add_layout(legend, "below")
    _style_legend(legend)


def _style_legend(legend: Legend) -> None:
    legend.label_text_font_size = "11px"
    legend.border_line_alpha = 0
    legend.update(padding=2, spacing=8, margin=0, location="left")


def _short(name: str) -> str:
    """Return a name that fits into a legend."""
    return name if len(name) <= _MAX_LABEL else f"{name[: _MAX_LABEL - 1]}…"


def _labels(names: Sequence[str]) -> list[str]:
    """Return the names as they fit beside an axis, where no two may be equal: those that would be get their place."""
    short = [_short(name) for name in names]
    return [name if short.count(name) == 1 else f"{name} #{place}" for place, name in enumerate(short, start=1)]


def iter_models(plots: Mapping[str, Sequence[Model]]) -> Iterator[tuple[str, Model]]:
    """Yield each plot with the id of the element that it is drawn in."""
    for section, models in plots.items():
        for number, model in enumerate(models):
            yield f"plot-{section}-{number}", model
