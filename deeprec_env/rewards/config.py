"""The named reward terms with their weights and stages, and the two presets. Computes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deeprec_env.errors import unknown_name

STAGES = ("cold", "rec")
RULES = ("strict", "paper")


@dataclass(frozen=True, slots=True)
class Term:
    """What one named part of the reward pays for."""

    name: str
    weight_field: str
    """The field of RewardConfig that scales it; 0 switches it off."""
    stages: tuple[str, ...]
    description: str


TERMS: tuple[Term, ...] = (
    Term("format", "format_penalty", ("cold", "rec"), "minus the penalty if the episode does not end well-formed"),
    Term("outcome", "hit_weight", ("rec",), "the target is in the ranking: 1 + 0.2 (10 - place), places from 0"),
    Term("similarity", "similarity_weight", ("rec",), "mean likeness of the ranked items to the target"),
    Term("invocation", "invocation_weight", ("cold",), "0.5 for the second and the third search"),
    Term("diversity", "diversity_weight", ("cold",), "how far apart the preferences lie"),
    Term("progress", "progress_weight", ("cold", "rec"), "potential of the target's best place among the candidates"),
)


@dataclass(frozen=True)
class RewardConfig:
    """Weights and thresholds of the reward terms."""

    rules: str = "strict"
    """`strict` works on item ids and turns, `paper` on text as published."""
    format_penalty: float = 1.0
    """Paid, negative, once at the end of an episode that is not well-formed."""
    hit_weight: float = 1.0
    """Scales the hit's 1 + hit_rank_step (10 - place)."""
    hit_rank_step: float = 0.2
    similarity_weight: float = 1.0
    """Below the worst hit's 1.2, so that a hit outweighs any list without one. The paper: 10."""
    invocation_weight: float = 0.5
    """A search beyond the first, up to invocation_max."""
    invocation_max: int = 3
    diversity_weight: float = 0.25
    """With the cap, diversity is worth at most 0.1. The paper: 0.2, without a cap."""
    diversity_cap: float = 0.4
    """Distances beyond it earn no more, so that gibberish gains nothing over different wishes (strict only).

    "Drama", "Comedy" and "Romance" lie 0.49 apart by all-MiniLM-L6-v2, the least of all honest trios of MovieLens-100K.
    """
    near_duplicate: float = 0.95
    """Preferences whose embeddings have at least this dot product are one preference (strict only)."""
    min_new_share: float = 0.15
    """A search of whose candidates fewer are new asks for nothing new (strict only).

    It takes "Drama 1" and "Drama 2" for one where embeddings do not; about 1 in 300 honest ones is below (sample).
    """
    progress_weight: float = 0.0
    """Off by default. Potential-based: paid back at the end, so that the optimum stays (strict only)."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: if the rules are unknown or a number is negative.
        """
        if self.rules not in RULES:
            raise unknown_name("rules", self.rules, RULES)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "rules":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
                raise ValueError(f"expected {field.name} to be a number of at least 0, got {value!r}")

    def terms(self, stage: str) -> tuple[str, ...]:
        """Return the names of the terms that the stage pays, in a fixed order."""
        optional = {"progress"} if self.rules == "paper" or not self.progress_weight else set()
        return tuple(term.name for term in TERMS if stage in term.stages and term.name not in optional)


PRESETS: Mapping[str, RewardConfig] = {
    "strict": RewardConfig(),
    "paper": RewardConfig(rules="paper", similarity_weight=10.0, diversity_weight=0.2),
}


def build_reward_config(reward: str | RewardConfig | Mapping[str, Any]) -> RewardConfig:
    """Return the configuration of a preset's name, of a mapping that changes one, or the given one.

    Raises:
        ValueError: if the preset or a field does not exist, or a value is wrong.
        TypeError: if it is none of the three.
    """
    if isinstance(reward, RewardConfig):
        return reward
    if isinstance(reward, str):
        if reward not in PRESETS:
            raise unknown_name("reward", reward, PRESETS)
        return PRESETS[reward]
    if not isinstance(reward, Mapping):
        raise TypeError(f"expected reward to be a preset's name, a mapping or a RewardConfig, got {reward!r}")
    changes = dict(reward)
    base = build_reward_config(changes.pop("preset", "strict"))
    names = [field.name for field in dataclasses.fields(RewardConfig)]
    for name in changes:
        if name not in names:
            raise unknown_name("a field of the reward", name, names)
    return dataclasses.replace(base, **changes)
