"""GRPO by TRL's trainer on the sample data set, with a micro Llama made on the spot: seconds a step on two CPU cores.

pip install "deeprec-env[trm,agents,trl]"
python examples/doors/train_with_trl.py --steps 3
python examples/doors/train_with_trl.py --policy runs/quickstart/sft --dataset ml-100k --steps 20
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is called experimental by TRL

from trl import GRPOConfig, GRPOTrainer

from agents.doors.trl import GameRollouts, episode_reward
from agents.grpo.policy import Policy, PolicyConfig, build_policy, load_policy
from agents.grpo.tokenizer import train_tokenizer
from agents.heuristic_agent import HeuristicAgent
from agents.play import play
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.world import load_world


def micro_policy(game: Game) -> Policy:
    """Return a fresh Llama of 0.1M parameters; its tokenizer is fitted to what the rule agent writes."""
    texts = [episode.transcript for episode in play(game, HeuristicAgent(), range(50), split="train")]
    titles = [item.title for item in game.world.items[1:]]
    tokenizer = train_tokenizer(texts, titles=titles, vocab_size=1000)
    size = PolicyConfig(hidden_size=64, num_layers=2, num_heads=2, max_tokens=1024, vocab_size=1000)
    return build_policy(size, tokenizer, seed=0)


def main(argv: Sequence[str] | None = None) -> GRPOTrainer:
    """Train and return the trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--policy", type=Path, help="a policy in Hugging Face format; a fresh micro Llama if not given")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/trl"))
    args = parser.parse_args(argv)

    game = Game(load_world(args.dataset), GameConfig(stage="cold", prompt_style="compact"))
    policy = load_policy(args.policy) if args.policy else micro_policy(game)
    rollouts = GameRollouts(game, max_tokens=96)
    config = GRPOConfig(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=8,
        num_generations=4,
        learning_rate=3e-4,
        beta=0.0,
        scale_rewards=False,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        train_dataset=rollouts.dataset(range(game.world.splits.num_users)),
        rollout_func=rollouts,
        reward_funcs=episode_reward,
        args=config,
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
