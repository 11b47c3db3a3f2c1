"""`deeprec evaluate`, `deeprec report`, `deeprec spread` and `deeprec agents`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from agents.cli.common import GameChoice, at_least, chosen_game, game_for, named_agent, positive, say, writable_folder
from agents.cli.tables import say_markdown

if TYPE_CHECKING:
    from agents.compare import Difference
    from agents.evaluate import AgentResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluate:
    """Let agents play the same users and print one table. Users that were played before are not played again."""

    game: Annotated[GameChoice, tyro.conf.arg(name="")] = field(default_factory=GameChoice)
    agents: str = "random,popularity,trm,heuristic"
    """Names, separated by commas, such as trm,heuristic?num_searches=2,llm:runs/a/rec (options after "?", a checkpoint
    after a colon)."""
    users: str = "all"
    """"all", or how many: a fixed sample of that size."""
    out: Path = Path("runs/evaluation")
    """Where rows and tables are written."""
    seed: int = 0
    """Seeds the agents."""
    batch_size: int = 256
    """How many episodes are played at a time."""
    baseline: str | None = None
    """An agent of the table, such as heuristic, that the others are compared with, user by user."""
    quiet: bool = False
    """Show no progress bars."""

    def run(self) -> None:
        """Evaluate, write the table and print it."""
        from agents.compare import differences_to
        from agents.evaluate import evaluate, named_result, sample_users, shown_name, summarize
        from agents.report import write_report
        from agents.strata import estimate_strata

        players = [named_agent(spec) for spec in self.agents.split(",") if spec.strip()]
        if not players:
            raise ValueError("--agents names no agent; `deeprec agents` lists them")
        num_users = None if self.users == "all" else positive("--users", self.users)
        at_least("--seed", self.seed, 0)
        at_least("--batch-size", self.batch_size, 1)
        writable_folder("--out", self.out)
        game = chosen_game(self.game)
        users = sample_users(game.world.splits.num_users, num_users)
        names = [shown_name(agent) for agent in players]
        baseline = None if self.baseline is None else named_result(self.baseline, names, what="--baseline")
        results: list[AgentResult] = []
        for agent in players:
            result = evaluate(
                game_for(game, agent),
                [agent],
                users,
                split=self.game.split,
                seed=self.seed,
                batch_size=self.batch_size,
                out=self.out,
                progress=not self.quiet,
            )
            results.extend(result.agents)
        differences = differences_to(baseline, results) if baseline is not None else []
        summaries = [summarize(result) for result in results]
        say_markdown(write_report(summaries, [], self.out, differences=differences, strata=estimate_strata(results)))


@dataclass(frozen=True)
class Report:
    """Draw everything that was evaluated and trained under a folder: tables, curves, and one page to look at."""

    folder: Positional[Path]
    """What was given to `deeprec evaluate --out`; training runs in it are found as well."""
    runs: tuple[Path, ...] = ()
    """Folders of further training runs."""
    baseline: str | None = None
    """An agent of the table, such as trm, that the others are compared with, user by user."""
    users: int = 1000
    """How many users the page's browser of transcripts holds; 0 leaves it out."""
    page: bool = True
    """Whether to write report.html."""

    def run(self) -> None:
        """Write table.md, table.csv, strata.csv, curves.png and report.html, and print the Markdown."""
        from agents.compare import differences_to
        from agents.evaluate import load_results, named_result, summarize
        from agents.report import load_curves, write_report
        from agents.strata import estimate_strata

        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.folder}; `deeprec evaluate --out {self.folder}` makes it"
            )
        at_least("--users", self.users, 0)
        logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of each file that it has read
        results = load_results(self.folder)
        curves = [curve for run in (self.folder, *self.runs) for curve in load_curves(run)]
        if not results and not curves:
            raise ValueError(f"{self.folder} holds neither evaluated agents nor training runs; nothing to report")
        differences: Sequence[Difference] = []
        if self.baseline is not None:
            names = [result.header.agent for result in results]
            differences = differences_to(named_result(self.baseline, names, what="--baseline"), results)
        summaries, strata = [summarize(result) for result in results], estimate_strata(results)
        say_markdown(write_report(summaries, curves, self.folder, differences=differences, strata=strata))
        if self.page:
            self._write_page(results, differences)

    def _write_page(self, results: Sequence[AgentResult], differences: Sequence[Difference]) -> None:
        try:
            from agents.report_page import PAGE_FILE, write_page
        except ModuleNotFoundError as error:
            logger.warning("report.html is not written: %s; pip install 'deeprec-env[report]'", error)
            return
        from agents.training_log import load_run_logs

        runs = [log for run in (self.folder, *self.runs) for log in load_run_logs(run)]
        path = self.folder / PAGE_FILE
        if self.users:
            logger.info("%s: playing the saved actions again for its transcripts", path)
        write_page(results, runs, path, differences=differences, max_users=self.users)
        logger.info("%s: open it in a browser", path)


@dataclass(frozen=True)
class Spread:
    """Compare the same agents over several seeds: one folder of `deeprec evaluate` a seed."""

    folders: Positional[tuple[Path, ...]]
    """What was given to `deeprec evaluate --out`, a folder a seed."""
    baseline: str | None = None
    """An agent of every folder, such as trm, that the others are compared with, user by user and seed by seed."""
    out: Path | None = None
    """A Markdown file to write besides."""

    def run(self) -> None:
        """Print the tables."""
        from agents.evaluate import load_results, named_result
        from agents.spread import pooled_differences, render_pooled, render_spread, spread_of

        seeds = []
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no folder {folder}; `deeprec evaluate --out {folder}` makes it")
            seeds.append(load_results(folder))
            if not seeds[-1]:
                raise ValueError(f"expected rows of `deeprec evaluate --out {folder}`, got none in {folder}")
        spreads = spread_of(seeds)
        if not spreads:
            raise ValueError(f"expected an agent that all of {', '.join(map(str, self.folders))} hold, got none")
        parts = [render_spread(spreads)]
        if self.baseline is not None:
            baseline = named_result(self.baseline, [spread.agent for spread in spreads], what="--baseline")
            parts.append(render_pooled(pooled_differences(baseline, seeds)))
        text = "\n".join(parts)
        if self.out is not None:
            self.out.write_text(text, encoding="utf-8")
        say_markdown(text)


@dataclass(frozen=True)
class Agents:
    """List the agents that can be named."""

    def run(self) -> None:
        """Print a line an agent."""
        from agents.registry import describe_agent, registered_agents

        for name, target in registered_agents().items():
            say(f"{name:12} {target:40} {describe_agent(target)}")
