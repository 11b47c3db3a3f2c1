"""Play the game through an OpenEnv server: any policy that maps text to text, here a scripted one.

pip install "deeprec-env[openenv]"
python -m agents.doors.openenv --dataset sample --port 8000 &
python examples/doors/play_over_openenv.py http://127.0.0.1:8000 --users 5
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from agents.doors.openenv import GameClient, TurnAction
from deeprec_env.protocol import ITEM_LIST_BEGIN, ITEM_LIST_END, parse_titles, render_recommend, render_search


def policy(text: str, *, top_k: int = 10) -> str:
    """Search without a wish, then recommend what came back in its order."""
    if not text.lstrip().startswith(ITEM_LIST_BEGIN):  # the prompt, which explains the tags
        return render_search("", reasoning="First I see what fits the whole history.")
    found = text.partition(ITEM_LIST_BEGIN)[2].partition(ITEM_LIST_END)[0]
    return render_recommend(parse_titles(found)[:top_k], reasoning="I keep their order.")


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Play and return each episode's reward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--users", type=int, default=5)
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    rewards = []
    with GameClient(base_url=args.url).sync() as client:
        for index in range(args.users):
            result = client.reset(split=args.split, index=index)
            while not result.done:
                result = client.step(TurnAction(text=policy(result.observation.text)))
            rewards.append(client.state().total_reward)
            outcome = result.observation.outcome or {}
            print(f"user {index}: reward {rewards[-1]:+.3f}, the target's place {outcome.get('hit_rank') or 'none'}")
    return rewards


if __name__ == "__main__":
    main()
