"""The game: many episodes, one step, one retriever call. Environments and agents' loops are thin shells over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from deeprec_env.config import SPLITS, GameConfig
from deeprec_env.episode import RETRIEVES, Episode, Turn, Verdict, judge
from deeprec_env.errors import unknown_name
from deeprec_env.infos import step_infos
from deeprec_env.prompts import render_prompt
from deeprec_env.protocol import render_items
from deeprec_env.rewards.compose import build_scorer, pay
from deeprec_env.rewards.outcome import Outcome, build_outcome
from deeprec_env.world import Opening, World
from trm.types import RetrievalQuery

MAX_OPENINGS = 4096
"""Beginnings of episodes that a world keeps: enough for the groups in play, a few megabytes at most."""


class StepResult(NamedTuple):
    """What `gymnasium.Env.step` returns."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Game:
    """The rules over one world. Holds no episode and no randomness."""

    def __init__(self, world: World, config: GameConfig | None = None) -> None:
        """Bind rules and world.

        Args:
            world: catalogue, users and recommender.
            config: the defaults if None.
        """
        self.world = world
        self.config = config or GameConfig()
        self._scorer = build_scorer(world, self.config.rewards, stage=self.config.stage, top_k=self.config.top_k)

    def start(self, user_index: int, split: str = "train") -> Episode:
        """Return a new episode of this user.

        Raises:
            ValueError: if there is no such user or split.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        num_users = self.world.splits.num_users
        if not 0 <= user_index < num_users:
            raise ValueError(f"expected user_index to be in 0..{num_users - 1}, got {user_index}")
        user = int(user_index)
        return Episode(user, self.world.splits.user_ids[user], split, *self._opening(user, split))

    def _opening(self, user: int, split: str) -> Opening:
        """Return how this user's episodes begin; made once for a group of them."""
        config, openings = self.config, self.world.openings
        key = (user, split, config.top_k, config.prompt_style, config.max_history)
        if key not in openings:
            example = self.world.splits.example(split, user)  # type: ignore[arg-type]
            # A user may have chosen the same item before; the target must not be seen.
            history = tuple(item_id for item_id in example.history if item_id != example.target)
            prompt = render_prompt(
                [self.world.items[item_id] for item_id in history[-config.max_history :]],
                top_k=config.top_k,
                style=config.prompt_style,
                max_history=config.max_history,
            )
            if len(openings) >= MAX_OPENINGS:
                openings.clear()
            openings[key] = Opening(history, example.target, prompt)
        return openings[key]

    def step(self, episodes: Sequence[Episode], actions: Sequence[str]) -> list[StepResult]:
        """Play one action in each episode and return what came of each; see `play`."""
        turns = self.play(episodes, actions)
        return [
            StepResult(turn.observation, turn.reward, episode.terminated, episode.truncated, info)
            for episode, turn, info in zip(episodes, turns, step_infos(episodes), strict=True)
        ]

    def play(self, episodes: Sequence[Episode], actions: Sequence[str]) -> list[Turn]:
        """Play one action in each episode, record the turn there, and return it.

        At most one `retriever.retrieve` and one `encoder.encode` are called for all of them.

        Args:
            episodes: running episodes, each at most once.
            actions: one text an episode. Any text is an action.

        Raises:
            TypeError: if an action is not a string.
            ValueError: if the numbers differ or an episode is given twice.
            EpisodeEnded: if an episode has ended; then none is changed.
            RetrieverError: if the recommender is broken; then none is changed.
        """
        if len(episodes) != len(actions) or len(set(map(id, episodes))) != len(episodes):
            raise ValueError(f"expected one action for each of {len(episodes)} distinct episodes, got {len(actions)}")
        for action in actions:
            if not isinstance(action, str):
                raise TypeError(f"expected an action to be a string, got {action!r} of type {type(action).__name__}")
        verdicts = [judge(episode, action, self.config) for episode, action in zip(episodes, actions, strict=True)]
        candidates = self._retrieve(episodes, verdicts)
        self._embed(episodes, actions, verdicts)
        turns = list(map(self._turn, episodes, actions, verdicts, candidates))
        ends = [verdict.effect is not RETRIEVES for verdict in verdicts]
        outcomes = [self._outcome(e, v) if end else None for e, v, end in zip(episodes, verdicts, ends, strict=True)]
        due = self._scorer.due(episodes, turns, outcomes)
        for episode, turn, verdict, outcome, totals in zip(episodes, turns, verdicts, outcomes, due, strict=True):
            pay(episode, totals, turn.reward_terms)
            episode.append(turn, verdict, outcome=outcome)
        return turns

    def _retrieve(self, episodes: Sequence[Episode], verdicts: Sequence[Verdict]) -> list[tuple[int, ...]]:
        """Return each episode's candidates, () where nothing is searched."""
        searching = [place for place, verdict in enumerate(verdicts) if verdict.effect is RETRIEVES]
        found: list[tuple[int, ...]] = [()] * len(episodes)
        if searching:
            config = self.config
            queries = [
                RetrievalQuery(episodes[i].history, verdicts[i].preference or "", config.k, config.exclude_history)
                for i in searching
            ]
            for place, answer in zip(searching, self.world.retriever.retrieve(queries), strict=True):
                found[place] = tuple(answer.item_ids)
        return found

    def _embed(self, episodes: Sequence[Episode], actions: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Add to each episode the embeddings that its reward will look up."""
        wanted = self._scorer.texts(episodes, actions, verdicts)
        if wanted:
            texts = list(dict.fromkeys([text for _, text in wanted]))
            vectors = dict(zip(texts, self.world.encoder.encode(texts), strict=True))
            for episode, text in wanted:
                episode.embeddings[text] = vectors[text]

    def _turn(self, episode: Episode, action: str, verdict: Verdict, found: tuple[int, ...]) -> Turn:
        """Return the turn, its rewards not filled in yet."""
        observation, num_new = "", 0
        if verdict.effect is RETRIEVES:
            shown = list(map(self.world.items.__getitem__, found))
            observation = render_items(shown, show_attributes=self.config.show_attributes)
            num_new = episode.see(found)
        return Turn(action, observation, verdict.kind, verdict.preference, found, num_new, {}, verdict.malformed_reason)

    def _outcome(self, episode: Episode, verdict: Verdict) -> Outcome:
        """Return how the episode ends, which it does by this action."""
        return build_outcome(
            verdict.titles,
            target=episode.target,
            top_k=self.config.top_k,
            find=self.world.find,
            pool=episode.seen,
            well_formed=verdict.malformed_reason is None,
        )
