"""What SFT imitates: an agent's episodes, all of them or each user's best.

The agent plays by the prompts that it knows, the policy learns by those that it will see.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agents.base import Agent, AgentError
from agents.grpo.config import SftConfig
from agents.play import play

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)
_SPLIT = "train"


def demonstrate(game: Game, teacher: Agent, users: Sequence[int], config: SftConfig, *, seed: int) -> list[Episode]:
    """Return the episodes of the teacher that are to be imitated, with the prompts of `game`.

    Args:
        game: as the policy will play it.
        teacher: a language model plays it by the prompts that it was trained on.
        users: of split "train".
        config: how many are played and which are kept.
        seed: of the play.

    Raises:
        AgentError: if none is left.
    """
    options = getattr(teacher, "game_options", None) or {}
    stage_of_teacher = type(game)(game.world, dataclasses.replace(game.config, **options)) if options else game
    episodes = play(
        stage_of_teacher, teacher, users, split=_SPLIT, seed=seed, num_samples=config.num_samples, progress=True
    )
    kept = select_episodes(
        episodes, num_samples=config.num_samples, keep_best=config.keep_best, min_reward=config.min_reward
    )
    if not kept:
        raise AgentError(
            f"expected dialogues of {teacher.name} to imitate, got none of {len(episodes)} that is well-formed and "
            f"earned {config.min_reward:g}; lower sft.min_reward, raise sft.num_samples or take another sft.teacher"
        )
    if len(kept) < len(episodes):
        logger.info("sft: %d of %d dialogues of %s are imitated", len(kept), len(episodes), teacher.name)
    return [_shown_as(game, episode) for episode in kept] if options else kept


def select_episodes(
    episodes: Sequence[Episode], *, num_samples: int, keep_best: int = 0, min_reward: float = float("-inf")
) -> list[Episode]:
    """Return the well-formed episodes that earned enough, of each user the best, in their order.

    Args:
        episodes: `num_samples` of each user side by side, as `play` returns them.
        num_samples: at least 1.
        keep_best: of a user at most so many, of equal rewards the earlier; 0 keeps all.
        min_reward: what an episode must have earned.
    """
    kept: list[Episode] = []
    for first in range(0, len(episodes), num_samples):
        group = episodes[first : first + num_samples]
        good = [place for place, one in enumerate(group) if one.well_formed and one.reward >= min_reward]
        best = sorted(good, key=lambda place: (-group[place].reward, place))[: keep_best or None]
        kept.extend(group[place] for place in sorted(best))
    return kept


def _shown_as(game: Game, episode: Episode) -> Episode:
    """Return the episode with the prompt of this game; its observations are the same in all."""
    return dataclasses.replace(episode, prompt=game.start(episode.user_index, episode.split).prompt)
