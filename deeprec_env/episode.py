"""The record of one episode, and the pure rule that says what an action does to it. Knows neither world nor rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deeprec_env.config import GameConfig
from deeprec_env.errors import EpisodeEnded
from deeprec_env.protocol import ActionKind, Malformed, MalformedReason, Recommend, Search, parse_action
from deeprec_env.rewards.outcome import Outcome
from deeprec_env.rewards.process import DistinctPreferences
from trm.types import FloatArray


class Turn(NamedTuple):
    """One finished step: an action and what came of it."""

    action: str
    observation: str
    """The new text only; "" on the last turn."""
    kind: ActionKind
    preference: str | None
    """The preference of a search; None for another action."""
    candidate_ids: tuple[int, ...]
    """What the search returned, best first."""
    num_new_candidates: int
    """How many of them the episode had not seen before."""
    reward_terms: Mapping[str, float]
    """Every term of the stage; they sum to the reward exactly."""
    malformed_reason: MalformedReason | None = None
    """Why the episode ended otherwise than by a well-formed recommendation; None in all other turns."""

    @property
    def is_answered_search(self) -> bool:
        """Whether the recommender was called."""
        return self.kind is ActionKind.SEARCH and self.malformed_reason is None

    @property
    def reward(self) -> float:
        """What the step paid."""
        return sum(self.reward_terms.values(), start=0.0)


class Verdict(NamedTuple):
    """What an action is, before anything has been retrieved for it."""

    kind: ActionKind
    preference: str | None = None
    titles: tuple[str, ...] = ()
    malformed_reason: MalformedReason | None = None
    terminated: bool = False
    truncated: bool = False
    retrieves: bool = False
    """Whether the recommender is to be called."""

    @property
    def ends(self) -> bool:
        """Whether the episode is over with this action."""
        return self.terminated or self.truncated


@dataclass(slots=True, eq=False)
class Episode:
    """One user, one held-out item, and all that has happened. Only `append` changes it."""

    user_index: int
    user_id: str
    split: str
    history: tuple[int, ...]
    """Item ids, oldest first. Never holds the target."""
    target: int
    """The held-out item. An oracle's knowledge: policies must not read it."""
    prompt: str
    """The first observation."""
    turns: list[Turn] = field(default_factory=list)
    seen: dict[int, None] = field(default_factory=dict, repr=False)
    """The candidates so far, as an ordered set."""
    terminated: bool = False
    """Ended by a recommendation or a malformed action."""
    truncated: bool = False
    """Ended by a budget."""
    outcome: Outcome | None = None
    """Set when the episode has ended."""
    paid: dict[str, float] = field(default_factory=dict)
    """What each reward term has paid so far."""
    embeddings: dict[str, FloatArray] = field(default_factory=dict, repr=False)
    """Unit vectors of the preferences, as far as the reward has needed them."""
    preferences: DistinctPreferences | None = field(default=None, repr=False)
    """The searches as the reward has judged them, where it pays for searching."""
    num_chars: int = 0
    """Length of the response."""
    num_searches: int = 0
    """How many searches were answered."""

    @property
    def ended(self) -> bool:
        """Whether no further action is possible."""
        return self.terminated or self.truncated

    @property
    def reward(self) -> float:
        """What all turns have paid; the exact sum of the turns' rewards."""
        return sum((turn.reward for turn in self.turns), start=0.0)

    @property
    def pool(self) -> tuple[int, ...]:
        """All candidates so far, in the order in which they first appeared."""
        return tuple(self.seen)

    @property
    def response(self) -> str:
        """All text after the prompt: actions and observations in turn."""
        return "".join(turn.action + turn.observation for turn in self.turns)

    @property
    def transcript(self) -> str:
        """The prompt and the response."""
        return self.prompt + self.response

    @property
    def target_in_pool(self) -> bool:
        """Whether a search has returned the target."""
        return self.target in self.seen

    @property
    def well_formed(self) -> bool:
        """Whether the episode has ended in a well-formed recommendation."""
        return self.outcome is not None and self.outcome.well_formed

    def append(self, turn: Turn, verdict: Verdict, *, outcome: Outcome | None) -> None:
        """Record a finished turn."""
        self.turns.append(turn)
        self.num_chars += len(turn.action) + len(turn.observation)
        if verdict.retrieves:
            self.num_searches += 1
            for item_id in turn.candidate_ids:
                self.seen[item_id] = None
        paid = self.paid
        for name, amount in turn.reward_terms.items():
            paid[name] = paid.get(name, 0.0) + amount
        self.terminated, self.truncated, self.outcome = verdict.terminated, verdict.truncated, outcome


def judge(episode: Episode, action: str, config: GameConfig) -> Verdict:
    """Return what the action is in this episode, and whether it ends it. Changes nothing.

    Raises:
        EpisodeEnded: if the episode has ended.
    """
    if episode.terminated or episode.truncated:
        num_turns = len(episode.turns)
        raise EpisodeEnded(f"expected a running episode, got one that ended after {num_turns} turns; reset it first")
    num_chars = episode.num_chars + len(action)
    if len(action) > config.max_action_chars or num_chars > config.max_episode_chars:
        return Verdict(ActionKind.MALFORMED, malformed_reason=MalformedReason.TEXT_BUDGET, truncated=True)
    match parse_action(action):
        case Search(preference):
            if episode.num_searches < config.max_turns:
                return Verdict(ActionKind.SEARCH, preference, retrieves=True)
            reason = MalformedReason.SEARCH_BUDGET
            return Verdict(ActionKind.SEARCH, preference, malformed_reason=reason, truncated=True)
        case Recommend(titles, reasoning):
            reason_or_none = _recommend_problem(episode, titles, reasoning, config)
            return Verdict(ActionKind.RECOMMEND, titles=titles, malformed_reason=reason_or_none, terminated=True)
        case Malformed(reason):
            return Verdict(ActionKind.MALFORMED, malformed_reason=reason, terminated=True)


def _recommend_problem(
    episode: Episode, titles: Sequence[str], reasoning: str, config: GameConfig
) -> MalformedReason | None:
    if episode.num_searches == 0:
        return MalformedReason.NO_SEARCH
    if not reasoning:
        return MalformedReason.NO_REASONING
    if len(titles) != config.top_k:
        return MalformedReason.NUM_TITLES
    return None


def reset_info(episode: Episode) -> dict[str, object]:
    """Return the fresh `info` of a reset: a step's keys with nothing in them, and who the user is."""
    return {
        "turn": 0,
        "user_index": episode.user_index,
        "user_id": episode.user_id,
        "action_kind": None,
        "malformed_reason": None,
        "preference": None,
        "candidate_ids": (),
        "reward_terms": {},
        "oracle": {"target_id": episode.target, "target_rank": 0, "target_in_pool": False},
    }


def step_info(episode: Episode) -> dict[str, object]:
    """Return the fresh `info` of the last finished turn."""
    turn = episode.turns[-1]
    candidate_ids = turn.candidate_ids
    info: dict[str, object] = {
        "turn": len(episode.turns),
        "action_kind": str(turn.kind),
        "malformed_reason": None if turn.malformed_reason is None else str(turn.malformed_reason),
        "preference": turn.preference,
        "candidate_ids": candidate_ids,
        "reward_terms": dict(turn.reward_terms),
        "oracle": {
            "target_id": episode.target,
            "target_rank": candidate_ids.index(episode.target) + 1 if episode.target in candidate_ids else 0,
            "target_in_pool": episode.target_in_pool,
        },
    }
    if episode.outcome is not None:
        info["outcome"] = episode.outcome.as_info()
    return info
