import io
import re

import numpy as np
from rich.console import Console

from agents.grpo.status import LINE_INTERVAL_S, LiveStatus, sparkline


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _status(*, terminal: bool, first_step: int = 0, num_steps: int = 10) -> tuple[LiveStatus, _Clock, io.StringIO]:
    clock, stream = _Clock(), io.StringIO()
    console = Console(file=stream, force_terminal=terminal, color_system=None, width=160, height=40)
    return LiveStatus("rec", num_steps, first_step, console=console, clock=clock), clock, stream


def _metrics(reward: float) -> dict[str, float]:
    return {"rollout/reward_mean": reward, "data/zero_variance_groups": 3.0, "time/generate_s": 2.5}


def test_the_time_left_is_that_of_the_last_steps() -> None:
    status, clock, _ = _status(terminal=False, first_step=4)
    assert status.seconds_left is None
    clock.now = 30.0
    status.update(4, _metrics(0.1))
    # 5 of 10 steps are left, at 30 seconds each.
    assert status.seconds_left == 150.0
    clock.now = 40.0
    status.update(5, _metrics(0.2))
    # Two steps took 20 seconds on average; 4 are left.
    assert status.seconds_left == 80.0
    assert status.line() == "rec: step 6 of 10, 1:20 left, rollout/reward_mean 0.200"


def test_a_terminal_shows_one_screen() -> None:
    status, clock, stream = _status(terminal=True)
    with status:
        for step in range(3):
            clock.now += 1000.0
            status.update(step, _metrics(float(step)))
        status.phase("sampling")
        with status.console.capture() as capture:
            status.console.print(status.screen())
    shown = capture.get()
    for words in ("rec", "step 3 of 10", "50:00 passed", "1:56:40 left", "sampling", "dead groups", "sampling, s", "▁"):
        assert words in shown, shown
    # The last value, and the mean of 0, 1 and 2.
    assert re.search(r"reward +2 +1 ", shown), shown
    assert "KL" not in shown
    assert stream.getvalue()


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end() -> None:
    status, clock, stream = _status(terminal=False, num_steps=30)
    with status:
        for step in range(30):
            clock.now += LINE_INTERVAL_S / 8
            status.update(step, _metrics(0.0))
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"rec: step {step} of 30" for step in (8, 16, 24, 30)]


def test_nothing_is_shown_where_it_was_not_asked_for() -> None:
    stream = io.StringIO()
    with LiveStatus("sft", 1, show=False, console=Console(file=stream, force_terminal=True)) as status:
        status.update(0, {"loss/sft": 1.0})
    assert stream.getvalue() == ""


def test_sparklines_by_hand() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, 7.0, 3.0]) == "▁█▄"
    # Each bar is the mean of its stretch: 0.5 and 4.5.
    assert sparkline([0.0, 1.0, 4.0, 5.0], width=2) == "▁█"
    assert len(sparkline(np.arange(1000).tolist())) == 48
