"""The report as one HTML page that needs no network: tables, plots, and a browser of transcripts.

Texts of models, agents and catalogues reach the page by two ways only: through the template, which escapes them, and as
data, which the page's script puts in as text.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.embed import json_item
from bokeh.models import Model
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from agents.browser_data import build_browser_data
from agents.compare import COMPARED, Difference
from agents.evaluate import DETAILS, METRICS, AgentSummary, Estimate, summarize
from agents.report_plots import (
    END_COLORS,
    color_of,
    iter_models,
    plot_curves,
    plot_ends,
    plot_losses,
    plot_strata,
    plot_terms,
)
from agents.rows import AgentResult
from agents.strata import StratumEstimate, estimate_strata
from agents.training_log import RunLogs
from deeprec_env.protocol import SPECIAL_TOKENS

PAGE_FILE = "report.html"
MAX_USERS = 1000
"""Users in the browser of transcripts, where nothing else is asked for."""
STRATA_METRICS = ("Recall@10", "Pool recall")


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in a table."""

    text: str
    detail: str = ""
    """Its interval."""
    value: float | None = None
    """By which it is sorted; None stands at the end."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: an agent and its numbers."""

    agent: str
    color: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with sortable columns."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says of one data set and split."""

    title: str
    tables: tuple[Table, ...]
    num_users: int
    plots: Mapping[str, Sequence[Model]]
    agents: Mapping[str, str]
    """Colour by agent."""


def write_page(
    results: Sequence[AgentResult],
    runs: Sequence[RunLogs],
    path: Path,
    *,
    title: str = "DeepRec-Env report",
    differences: Sequence[Difference] = (),
    max_users: int = MAX_USERS,
) -> None:
    """Write the page, whole or not at all.

    Args:
        results: rows of agents, of any data sets.
        runs: scalars of training runs.
        path: the file.
        title: the page's heading.
        differences: to a baseline.
        max_users: how many users of a data set the browser of transcripts holds; 0 leaves it out.
    """
    strata = estimate_strata(results)
    sections: list[Section] = []
    browsers: list[dict[str, Any]] = []
    for dataset, split in dict.fromkeys((result.header.dataset, result.header.split) for result in results):
        group = [result for result in results if (result.header.dataset, result.header.split) == (dataset, split)]
        mine = [entry for entry in strata if (entry.dataset, entry.split) == (dataset, split)]
        paired = [entry for entry in differences if (entry.dataset, entry.split) == (dataset, split)]
        sections.append(_section(group, mine, paired, number=len(sections)))
        if max_users > 0:
            browsers.append(build_browser_data(group, max_users=max_users))
    training = {"curves": plot_curves(runs), "terms": plot_terms(runs), "losses": plot_losses(runs)}
    text = _render(title, sections, training, browsers)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _render(
    title: str,
    sections: Sequence[Section],
    training: Mapping[str, Sequence[Model]],
    browsers: Sequence[dict[str, Any]],
) -> str:
    folder = files("agents") / "html"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    models = [*(pair for section in sections for pair in iter_models(section.plots)), *iter_models(training)]
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8")).render(
        title=title,
        sections=sections,
        training=training,
        has_training=any(training.values()),
        browsers=browsers,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup((folder / "page.js").read_text(encoding="utf-8")),
        library=Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)) if models else "",
        plots=_json_in_script({element: json_item(model) for element, model in models}),
        settings=_json_in_script({"tags": list(SPECIAL_TOKENS), "end_colors": END_COLORS}),
        transcripts=_packed(browsers),
    )


def _json_in_script(data: Any) -> Markup:
    r"""Return JSON that may stand in a script element: no character of it can end the element."""
    return Markup(json.dumps(data).replace("<", "\\u003c").replace("&", "\\u0026"))


def _packed(data: Any) -> str:
    """Return JSON as base64 of gzip, equal for equal data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def _section(
    results: Sequence[AgentResult],
    strata: Sequence[StratumEstimate],
    differences: Sequence[Difference],
    *,
    number: int,
) -> Section:
    summaries = [summarize(result) for result in results]
    color_by_agent = {summary.agent: color_of(place) for place, summary in enumerate(summaries)}
    tables = [_main_table(summaries, color_by_agent), _details_table(summaries, color_by_agent)]
    if differences:
        tables.append(_differences_table(differences, color_by_agent))
    plots: dict[str, Sequence[Model]] = {f"{number}-ends": [plot_ends(summaries)]}
    if strata:
        plots |= {f"{number}-strata-{place}": plot_strata(strata, name) for place, name in enumerate(STRATA_METRICS)}
    header = results[0].header
    num_users = len({row.user_index for result in results for row in result.rows})
    return Section(f"{header.dataset}, {header.split} split", tuple(tables), num_users, plots, color_by_agent)


def _main_table(summaries: Sequence[AgentSummary], colors: Mapping[str, str]) -> Table:
    lines = [
        Line(
            summary.agent,
            colors[summary.agent],
            (_count(summary.num_users), *(_cell(name, summary.metrics.get(name)) for name in METRICS)),
        )
        for summary in summaries
    ]
    return Table("Agents", ("Users", *METRICS), tuple(lines))


def _details_table(summaries: Sequence[AgentSummary], colors: Mapping[str, str]) -> Table:
    faults = list(dict.fromkeys(fault for summary in summaries for fault in summary.share_by_fault))
    lines = []
    for summary in summaries:
        cells = [_cell(name, summary.details.get(name)) for name in DETAILS]
        cells.append(_number(summary.coverage, 3))
        cells += [_number(summary.share_by_fault.get(fault, 0.0), 3) for fault in faults]
        lines.append(Line(summary.agent, colors[summary.agent], tuple(cells)))
    columns = (*DETAILS, "Coverage", *(f"fault: {fault.replace('_', ' ')}" for fault in faults))
    return Table("Where they lose", columns, tuple(lines))


def _differences_table(differences: Sequence[Difference], colors: Mapping[str, str]) -> Table:
    lines = [
        Line(
            entry.agent,
            colors[entry.agent],
            (
                _count(entry.num_users),
                *(
                    Cell(f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}", found.mean)
                    for found in entry.metrics.values()
                ),
            ),
        )
        for entry in differences
    ]
    return Table(f"Less {differences[0].baseline}, user by user", ("Users", *COMPARED), tuple(lines))


def _count(number: int) -> Cell:
    return Cell(str(number), value=number)


def _number(value: float | None, digits: int) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.{digits}f}", value=value)


def _cell(name: str, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("–")
    if name in ("Seconds/user", "Tokens/user"):
        return Cell(f"{estimate.mean:.0f}" if name == "Tokens/user" else f"{estimate.mean:.2g}", value=estimate.mean)
    digits = 2 if name in ("Searches", "Reward", "Novelty") else 3
    interval = f"{estimate.low:.{digits}f}–{estimate.high:.{digits}f}"
    return Cell(f"{estimate.mean:.{digits}f}", interval, estimate.mean)
