"""The record of one episode, and the pure rule that says what an action does to it. Knows neither world nor rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from deeprec_env.config import GameConfig
from deeprec_env.errors import EpisodeEnded
from deeprec_env.protocol import ActionKind, CutAction, Malformed, MalformedReason, Recommend, Search, parse_action
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
    reward_terms: dict[str, float]
    """Every term of the stage; they sum to the reward exactly. Filled in as the turn is recorded."""
    malformed_reason: MalformedReason | None = None
    """Why the episode ended otherwise than by a well-formed recommendation; None in all other turns."""

    @property
    def is_answered_search(self) -> bool:
        """Whether the recommender was called."""
        return self.kind is SEARCH and self.malformed_reason is None

    @property
    def reward(self) -> float:
        """What the step paid."""
        return sum(self.reward_terms.values(), 0.0)


class Effect(Enum):
    """What an action does to its episode."""

    RETRIEVES = "retrieves"
    """The recommender is called, and the episode goes on."""
    TERMINATES = "terminates"
    TRUNCATES = "truncates"


SEARCH, RECOMMEND, MALFORMED = ActionKind
RETRIEVES, TERMINATES, TRUNCATES = Effect
"""As plain names: a member that is read through its class costs as much as a call, several times a step."""


class Verdict(NamedTuple):
    """What an action is, before anything has been retrieved for it."""

    kind: ActionKind
    effect: Effect
    preference: str | None = None
    titles: tuple[str, ...] = ()
    malformed_reason: MalformedReason | None = None

    @property
    def retrieves(self) -> bool:
        """Whether the recommender is to be called."""
        return self.effect is RETRIEVES


@dataclass(slots=True, eq=False)
class Episode:
    """One user, one held-out item, and all that has happened. Only `Game.play` changes it."""

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
    seen: set[int] = field(default_factory=set, repr=False)
    """The candidates so far."""
    terminated: bool = False
    """Ended by a recommendation or a malformed action."""
    truncated: bool = False
    """Ended by a budget."""
    outcome: Outcome | None = None
    """Set when the episode has ended."""
    paid: dict[str, float] = field(default_factory=dict)
    """What each reward term has paid so far; `rewards.compose.pay` keeps it."""
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
        return tuple(dict.fromkeys(item_id for turn in self.turns for item_id in turn.candidate_ids))

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

    def see(self, candidate_ids: Sequence[int]) -> int:
        """Add the candidates of a search to the pool and return how many are new to it."""
        num_seen = len(self.seen)
        self.seen.update(candidate_ids)
        return len(self.seen) - num_seen

    def append(self, turn: Turn, verdict: Verdict, *, outcome: Outcome | None) -> None:
        """Record a finished turn, whose candidates have been seen."""
        self.turns.append(turn)
        self.num_chars += len(turn.action) + len(turn.observation)
        if verdict.effect is RETRIEVES:
            self.num_searches += 1
        else:
            self.terminated = verdict.effect is TERMINATES
            self.truncated = not self.terminated
            self.outcome = outcome


def judge(episode: Episode, action: str, config: GameConfig) -> Verdict:
    """Return what the action is in this episode, and whether it ends it. Changes nothing.

    Raises:
        EpisodeEnded: if the episode has ended.
    """
    if episode.terminated or episode.truncated:
        num_turns = len(episode.turns)
        raise EpisodeEnded(f"expected a running episode, got one that ended after {num_turns} turns; reset it first")
    num_chars = len(action)
    if num_chars > config.max_action_chars or episode.num_chars + num_chars > config.max_episode_chars:
        return Verdict(MALFORMED, TRUNCATES, malformed_reason=MalformedReason.TEXT_BUDGET)
    parsed = parse_action(action)
    match parsed:
        case Search():
            if episode.num_searches < config.max_turns:
                return Verdict(SEARCH, RETRIEVES, parsed.preference)
            return Verdict(SEARCH, TRUNCATES, parsed.preference, malformed_reason=MalformedReason.SEARCH_BUDGET)
        case Recommend():
            problem = _recommend_problem(episode, parsed.titles, parsed.reasoning, config)
            return Verdict(RECOMMEND, TERMINATES, None, parsed.titles, problem)
        case Malformed():
            if isinstance(action, CutAction):
                return Verdict(MALFORMED, TRUNCATES, malformed_reason=action.reason)
            return Verdict(MALFORMED, TERMINATES, malformed_reason=parsed.reason)


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
