"""Draws the curves that benchmarks/advantages.sh has trained: every seed thin, their mean thick, a colour an advantage.

    python -m benchmarks.advantages runs/agents/ml-100k/advantages

Writes advantages.png into the folder and prints a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.report import load_curves

PICTURE = "advantages.png"


def load_rewards(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Return float64 [seeds, steps] by advantage: the mean training reward of stage cold.

    Raises:
        ValueError: if there is no curve, or the seeds of one advantage differ in length.
    """
    rewards = {}
    for advantage in sorted(path for path in folder.iterdir() if path.is_dir()):
        curves = [curve for curve in load_curves(advantage) if curve.name.endswith("/cold")]
        if len({len(curve.rewards) for curve in curves}) != 1:
            lengths = [len(curve.rewards) for curve in curves]
            raise ValueError(f"expected finished runs of equal length in {advantage}, got steps {lengths}")
        rewards[advantage.name] = np.array([curve.rewards for curve in curves])
    if not rewards:
        raise ValueError(f"expected a folder an advantage in {folder}, got none; run benchmarks/advantages.sh")
    return rewards


def render_table(rewards: dict[str, NDArray[np.float64]]) -> str:
    """Return a Markdown table: mean reward over all steps, and over the first and the last fifth, seed by seed."""
    lines = ["| Advantage | First fifth | Last fifth | All steps | Last fifth, by seed |", "|---|---:|---:|---:|---|"]
    for name, rewards_SN in rewards.items():
        fifth = max(1, rewards_SN.shape[1] // 5)
        last_S = rewards_SN[:, -fifth:].mean(axis=1)
        by_seed = ", ".join(f"{value:.3f}" for value in last_S)
        figures = (rewards_SN[:, :fifth].mean(), last_S.mean(), rewards_SN.mean())
        lines.append(f"| {name} | {' | '.join(f'{figure:.3f}' for figure in figures)} | {by_seed} |")
    return "\n".join(lines)


def plot(rewards: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(6.5, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, rewards_SN) in enumerate(rewards.items()):
        colour = f"C{number}"
        axes.plot(rewards_SN.T, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(
            rewards_SN.mean(axis=0), color=colour, linewidth=2.2, label=f"{name}, mean of {len(rewards_SN)} seeds"
        )
    axes.set_xlabel("step of stage cold")
    axes.set_ylabel("mean reward of the rollouts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")


def main() -> None:
    """Draw and print."""
    folder = Path(sys.argv[1])
    rewards = load_rewards(folder)
    plot(rewards, folder / PICTURE)
    sys.stdout.write(f"{render_table(rewards)}\n\n{folder / PICTURE}\n")


if __name__ == "__main__":
    main()
