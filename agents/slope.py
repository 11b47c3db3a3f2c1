"""Does a curve rise? The slope of rewards over steps, with an interval that allows for serial correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_STEPS = 6
"""Fewer steps give no interval."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How the reward changes a step, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low > 0:
            return "rises"
        return "falls" if self.high < 0 else "no clear change"

    def __str__(self) -> str:
        """Return the slope, its interval and the verdict."""
        return f"{self.value:+.5f} a step, 95 % interval [{self.low:+.5f}, {self.high:+.5f}]: {self.verdict}"


def reward_slope(steps: ArrayLike, rewards: ArrayLike) -> Slope:
    """Return the least-squares slope of rewards over steps with a 95 % interval that allows for serial correlation.

    The interval is the wider of two: Newey and West's, and the one of residuals that follow an AR(1). Measured on noise
    without a trend, 20 to 80 steps: it holds 0 in 98 % of the series without correlation, in 93 to 95 % at a
    correlation of 0.5, and in 85 to 91 % at 0.8.

    Args:
        steps: float [n], not all equal.
        rewards: float [n].

    Raises:
        ValueError: if there are fewer than MIN_STEPS steps, all steps are equal or a value is not finite.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size < MIN_STEPS:
        raise ValueError(f"a slope needs at least {MIN_STEPS} steps and as many rewards, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0:
        raise ValueError("a slope needs finite rewards at different finite steps")
    order = np.argsort(x, kind="stable")
    x, y = x[order] - x.mean(), y[order]
    value = float(x @ y) / float(x @ x)
    residuals = y - y.mean() - value * x
    half = max(_newey_west(x, residuals), _autoregressive(x, residuals))
    return Slope(value, value - half, value + half)


def _newey_west(x: NDArray[np.float64], residuals: NDArray[np.float64]) -> float:
    """Return the half width by Newey and West's variance.

    Bartlett weights with the long bandwidth of Lazarus, Lewis, Stock and Watson (2018), 1.3 sqrt(n), and the critical
    value of Kiefer and Vogelsang (2005) for that bandwidth. The variance is never taken below the one without lags.
    """
    scores = x * residuals
    lags = min(x.size - 1, math.ceil(1.3 * math.sqrt(x.size)))
    plain = variance = float(scores @ scores)
    for lag in range(1, lags + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * float(scores[lag:] @ scores[:-lag])
    share = (lags + 1) / x.size
    critical = 1.9600 + 2.9694 * share + 0.4160 * share**2 - 0.5324 * share**3
    deviation = math.sqrt(max(variance, plain) * x.size / (x.size - 2)) / float(x @ x)
    return max(critical, _student(x.size - 2)) * deviation


def _autoregressive(x: NDArray[np.float64], residuals: NDArray[np.float64]) -> float:
    """Return the half width if residuals follow an AR(1), its coefficient corrected for the bias of short series."""
    squares = float(residuals @ residuals)
    if squares == 0.0:
        return 0.0
    raw = float(residuals[1:] @ residuals[:-1]) / squares
    correlation = min(max((x.size * raw + 2.0) / (x.size - 4), 0.0), 0.9)
    inflation = (1.0 + correlation) / (1.0 - correlation)
    return _student(x.size - 2) * math.sqrt(squares / (x.size - 2) * inflation / float(x @ x))


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to three digits from four degrees of freedom on."""
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
