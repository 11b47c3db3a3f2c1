"""The live status of a training run: one screen on a terminal, a line now and then elsewhere.

The screen shows where the run stands, the time left, what the last steps measured and where the time goes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_INTERVAL_S = 20.0
"""Between two lines where there is no terminal: seldom, for they fill a log file."""
_RECENT = 10
_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 48
_PANELS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "policy": (
        ("loss/sft", "loss"),
        ("rollout/reward_mean", "reward"),
        ("rollout/num_searches", "searches"),
        ("rollout/format_ok_rate", "well-formed"),
        ("rollout/truncated_rate", "truncated"),
        ("rollout/pool_recall", "pool recall"),
        ("rollout/hit_rate", "hits"),
        ("rollout/ndcg_at_10", "NDCG@10"),
        ("rollout/ranking_loss", "lost in ranking"),
    ),
    "learner": (
        ("loss/entropy", "entropy"),
        ("loss/kl", "KL"),
        ("loss/clip_fraction", "clipped"),
        ("loss/grad_norm", "gradient"),
        ("loss/is_ratio_mean", "trainer / engine"),
        ("loss/logp_difference_max", "worst difference"),
        ("data/zero_variance_groups", "dead groups"),
        ("data/failed_rollouts", "failed rollouts"),
        ("rollout/drift_tokens", "drift"),
    ),
    "time": (
        ("time/generate_s", "sampling, s"),
        ("time/update_s", "update, s"),
        ("time/weights_s", "weights to engine, s"),
        ("time/save_s", "saving, s"),
        ("time/sampled_tokens_per_s", "sampled tokens/s"),
        ("time/trained_tokens_per_s", "trained tokens/s"),
    ),
}
"""What is shown of the metrics, by column; those that a stage does not measure are left out."""


@dataclass
class LiveStatus:
    """What a stage shows while it runs; a context manager around its steps."""

    stage: str
    """Its name."""
    num_steps: int
    """Of the whole stage."""
    first_step: int = 0
    """Where this process began."""
    unit: str = "step"
    """What a step is called."""
    show: bool = True
    """Whether anything is shown."""
    curve: str = "rollout/reward_mean"
    """The metric that is drawn."""
    console: Console = field(default_factory=lambda: Console(file=sys.stderr))
    """Where it is shown."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""

    def __post_init__(self) -> None:
        """Start the clock."""
        self._step, self._phase = self.first_step, "starting"
        self._began = self._last_line = self._step_began = self.clock()
        # Replaced, never changed: the screen is drawn by a thread of its own.
        self._seconds: tuple[float, ...] = ()
        self._recent: dict[str, tuple[float, ...]] = {}
        self._drawn: tuple[float, ...] = ()
        self._live: Live | None = None

    def __enter__(self) -> LiveStatus:
        """Take the screen, if there is one."""
        if self.show and self.console.is_terminal:
            self._live = Live(get_renderable=self.screen, console=self.console, refresh_per_second=2, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last screen standing."""
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what is done at the moment, such as sampling."""
        self._phase = name

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note a finished step.

        Args:
            step: from 0.
            metrics: `group/name` -> value.
        """
        now = self.clock()
        self._seconds = _appended(self._seconds, now - self._step_began)
        self._step, self._step_began = step + 1, now
        for name, value in metrics.items():
            self._recent[name] = _appended(self._recent.get(name, ()), value)
        if self.curve in metrics:
            self._drawn = (*self._drawn, metrics[self.curve])
        if self.show and self._live is None and (now - self._last_line >= LINE_INTERVAL_S or self._is_over):
            self._last_line = now
            self.console.print(self.line(), highlight=False, soft_wrap=True)

    @property
    def _is_over(self) -> bool:
        return self._step >= self.num_steps

    @property
    def seconds_left(self) -> float | None:
        """How long the rest will take at the pace of the last steps; None before the first."""
        if not self._seconds:
            return None
        return max(0.0, self.num_steps - self._step) * float(np.mean(self._seconds))

    def line(self) -> str:
        """Return the status in one line."""
        shown = [f"{self.stage}: {self.unit} {self._step} of {self.num_steps}", f"{_span(self.seconds_left)} left"]
        if self.curve in self._recent:
            shown.append(f"{self.curve} {self._recent[self.curve][-1]:.3f}")
        return ", ".join(shown)

    def screen(self) -> RenderableType:
        """Return the whole screen."""
        passed = self.clock() - self._began
        head = Text.assemble(
            (f"{self.stage}  ", "bold"),
            f"{self.unit} {self._step} of {self.num_steps}   {_span(passed)} passed, ",
            (f"{_span(self.seconds_left)} left", "bold"),
            "" if self._is_over else f"   {self._phase}",
        )
        bar = ProgressBar(total=max(1, self.num_steps), completed=self._step, width=_CURVE_WIDTH)
        columns = Table.grid(padding=(0, 4))
        columns.add_row(*filter(None, (self._panel(names) for names in _PANELS.values())))
        parts: list[RenderableType] = [head, bar, columns]
        if len(self._drawn) > 1:
            low, high = min(self._drawn), max(self._drawn)
            parts.append(Text(f"{self.curve}  {low:.3f} {sparkline(self._drawn)} {high:.3f}"))
        return Group(*parts)

    def _panel(self, names: tuple[tuple[str, str], ...]) -> Table | None:
        """Return a column: the last step's value and the mean of the last ten."""
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(justify="right")
        table.add_column(justify="right", style="dim")
        for name, label in names:
            if values := self._recent.get(name):
                table.add_row(label, f"{values[-1]:.3g}", f"{np.mean(values):.3g}")
        return table if table.row_count else None


def _appended(values: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*values, value)[-_RECENT:]


def sparkline(values: Sequence[float], *, width: int = _CURVE_WIDTH) -> str:
    """Return the values as a row of at most `width` bars; each stands for the mean of its stretch."""
    if not values:
        return ""
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(values), min(width, len(values)))]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _span(seconds: float | None) -> str:
    """Return a span such as 1:02:03 or 4:05."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
