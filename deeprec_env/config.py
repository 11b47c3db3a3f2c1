"""The options of the game, checked where they enter. Rewards have their own in `rewards.config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deeprec_env.errors import unknown_name
from deeprec_env.prompts import PROMPT_STYLES
from deeprec_env.rewards.config import STAGES, RewardConfig, build_reward_config

SPLITS = ("train", "valid", "test")
"""Which interaction is held out: the third last, the second last, the last."""


@dataclass(frozen=True)
class GameConfig:
    """What a game is played by."""

    stage: str = "rec"
    """`cold` pays for searching, `rec` for the final ranking."""
    reward: str | RewardConfig | Mapping[str, Any] = "strict"
    """A preset's name, or a mapping {"preset": …, field: value} that changes one; a RewardConfig afterwards."""
    k: int = 20
    """Candidates a search."""
    top_k: int = 10
    """Titles in the final ranking."""
    max_turns: int = 8
    """Searches allowed; one more truncates the episode."""
    max_history: int = 20
    """Items of the history that the prompt shows, the latest ones. The recommender always gets all."""
    prompt_style: str = "full"
    """`full`, or `compact` for micro models."""
    show_attributes: bool = False
    """Whether retrieved items carry their attributes on a second line."""
    exclude_history: bool = True
    """Whether items of the history are left out of the candidates. The original leaves them in."""
    max_action_chars: int = 16_384
    """Longest action; a longer one truncates the episode."""
    max_episode_chars: int = 131_072
    """Longest text after the prompt, observations included; more truncates the episode."""

    def __post_init__(self) -> None:
        """Check every field and resolve the reward.

        Raises:
            ValueError: if a value is out of its range, or a name unknown.
        """
        if self.stage not in STAGES:
            raise unknown_name("stage", self.stage, STAGES)
        if self.prompt_style not in PROMPT_STYLES:
            raise unknown_name("prompt_style", self.prompt_style, PROMPT_STYLES)
        for name in ("k", "top_k", "max_turns", "max_history", "max_action_chars", "max_episode_chars"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        for name in ("show_attributes", "exclude_history"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"expected {name} to be True or False, got {getattr(self, name)!r}")
        object.__setattr__(self, "reward", build_reward_config(self.reward))

    @property
    def rewards(self) -> RewardConfig:
        """The resolved reward configuration."""
        assert isinstance(self.reward, RewardConfig)
        return self.reward


def build_game_config(options: Mapping[str, Any], *, others: Sequence[str] = ()) -> GameConfig:
    """Return the configuration with these options.

    Args:
        options: fields of GameConfig.
        others: further arguments that the caller takes, for the error to suggest.

    Raises:
        ValueError: if an option does not exist (the closest name is suggested) or its value is wrong.
    """
    names = [field.name for field in dataclasses.fields(GameConfig)]
    for name in options:
        if name not in names:
            raise unknown_name("an argument", name, [*others, *names])
    return GameConfig(**options)
