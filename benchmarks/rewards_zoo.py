"""Plays the zoo of degenerate policies in both presets and both stages, and writes the table of docs/rewards.md.

Run it from the repository's root: `python -m benchmarks.rewards_zoo --dataset sample --write docs/rewards.md`, and for
`--dataset ml-100k` with DEEPREC_HOME naming the folder with the prepared data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from deeprec_env.world import World, load_world
from tests.deeprec_env.rewards.zoo import HONEST, ZOO, earns_more, user_rewards

COLUMNS = (("rec", "strict"), ("rec", "paper"), ("cold", "strict"), ("cold", "paper"))


def build_table(world: World, *, num_users: int) -> str:
    """Return a Markdown table of mean rewards; bold where a degenerate policy earns more than the honest one.

    More is what `earns_more` calls so.
    """
    lines = [
        "| policy | " + " | ".join(f"`{stage}` {preset}" for stage, preset in COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    honest = [
        user_rewards(world, HONEST[stage], stage=stage, reward=preset, num_users=num_users) for stage, preset in COLUMNS
    ]
    lines.append("| *honest* | " + " | ".join(f"*{_mean(rewards):.3f}*" for rewards in honest) + " |")
    for name, policy in ZOO.items():
        cells = []
        for (stage, preset), bound in zip(COLUMNS, honest, strict=True):
            rewards = user_rewards(world, policy, stage=stage, reward=preset, num_users=num_users)
            cells.append(f"**{_mean(rewards):.3f}**" if earns_more(rewards, bound) else f"{_mean(rewards):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(rewards: Sequence[float]) -> float:
    return sum(rewards) / len(rewards)


def put_table(page: str, dataset: str, text: str) -> str:
    """Return the page with the text between the data set's markers.

    Raises:
        ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- zoo {dataset}: begin -->\n", f"<!-- zoo {dataset}: end -->"
    head, found_begin, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"expected the page to hold {begin.strip()!r} and {end!r}, got neither; add both lines")
    return f"{head}{begin}{text}\n{end}{tail}"


def main(dataset: str = "sample", *, num_users: int = 400, write: Path | None = None) -> None:
    """Print the table of a data set, or write it into a page.

    Args:
        dataset: one that is prepared.
        num_users: the first users of split "test".
        write: the page that holds the data set's markers.
    """
    world = load_world(dataset, auto_prepare=False)
    num_users = min(num_users, world.splits.num_users)
    text = f"{world!r}, the first {num_users} users of split `test`:\n\n{build_table(world, num_users=num_users)}"
    if write is None:
        print(text)
    else:
        write.write_text(put_table(write.read_text(encoding="utf-8"), dataset, text), encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
