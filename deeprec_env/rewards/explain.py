"""Why an episode was paid what it was paid: the terms of each turn, each with a reason in words.

Amounts are those that the episode recorded; reasons come from the functions that the scorers themselves call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from deeprec_env.episode import Episode, Turn
from deeprec_env.game import Game
from deeprec_env.protocol import ActionKind
from deeprec_env.rewards import paper
from deeprec_env.rewards.config import STAGES, TERMS, RewardConfig
from deeprec_env.rewards.outcome import likeness_by_place
from deeprec_env.rewards.process import JudgedSearch, Newness

_DESCRIPTION = {term.name: term.description for term in TERMS}


@dataclass(frozen=True, slots=True)
class Payment:
    """One term at one turn."""

    term: str
    amount: float
    """What the turn was paid for it."""
    total: float
    """What has been paid for it so far."""
    reasons: tuple[str, ...]
    """One a line; () where there is nothing to say."""


def explain_turn(game: Game, episode: Episode, turn_index: int) -> list[Payment]:
    """Return every term of a turn with the reasons for it, in the order of the terms.

    Args:
        game: the rules that the episode was played by.
        episode: as far as it was played.
        turn_index: from 0.
    """
    explainer = _Paper(game, episode) if game.config.rewards.rules == "paper" else _Strict(game, episode)
    turn = episode.turns[turn_index]
    payments = []
    for term, amount in turn.reward_terms.items():
        total = sum(earlier.reward_terms[term] for earlier in episode.turns[: turn_index + 1])
        payments.append(Payment(term, amount, total, tuple(explainer.reasons(term, turn, turn_index))))
    return payments


def render_explanation(game: Game, episode: Episode) -> str:
    """Return the payments of all turns as text, with what each term pays for at the top."""
    names = game.config.rewards.terms(game.config.stage)
    lines = [f"user {episode.user_id} ({episode.split}), stage {game.config.stage}, {game.config.rewards.rules} rules"]
    lines += [f"  {name}: {_DESCRIPTION[name]}" for name in names]
    for index, turn in enumerate(episode.turns):
        lines.append(f"--- turn {index + 1}: {_what(turn)} | reward {turn.reward:+.4f}")
        for payment in explain_turn(game, episode, index):
            lines.append(f"  {payment.term:<11}{payment.amount:+.4f}  (so far {payment.total:+.4f})")
            lines += [f"      {reason}" for reason in payment.reasons]
    lines.append(f"--- total reward {episode.reward:+.4f}" + ("" if episode.ended else " (the episode has not ended)"))
    return "\n".join(lines)


def render_tree(config: RewardConfig) -> str:
    """Return the terms of a configuration by stage as text, each with its weight and what it pays for."""
    lines = [f"reward, {config.rules} rules"]
    for stage in STAGES:
        lines.append(f"  stage {stage}")
        for term in (term for term in TERMS if stage in term.stages):
            weight = getattr(config, term.weight_field)
            is_paid = weight and term.name in config.terms(stage)
            lines.append(f"    {term.name:<11}{term.weight_field} {weight:g}{'' if is_paid else ' (off)'}")
            lines.append(f"               {term.description}")
    weights = {term.weight_field for term in TERMS}
    rest = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    rest = {name: value for name, value in rest.items() if name not in weights and name != "rules"}
    lines.append("  thresholds")
    lines += [f"    {name} {value:g}" for name, value in rest.items()]
    return "\n".join(lines)


def _what(turn: Turn) -> str:
    if turn.malformed_reason is not None:
        return f"{turn.kind}, not well-formed: {turn.malformed_reason}"
    if turn.kind is ActionKind.SEARCH:
        return f"search {turn.preference!r}, {turn.num_new_candidates} of {len(turn.candidate_ids)} candidates are new"
    return str(turn.kind)


class _Strict:
    """Reasons by the rules on item ids and turns."""

    def __init__(self, game: Game, episode: Episode) -> None:
        self._game = game
        self._config = game.config.rewards
        self._episode = episode

    def reasons(self, term: str, turn: Turn, turn_index: int) -> Iterator[str]:
        ends = self._episode.ended and turn_index == len(self._episode.turns) - 1
        if term == "format":
            yield from self._format(turn, ends=ends)
        elif ends and not self._episode.well_formed:
            if turn.reward_terms[term]:
                yield "taken back: the episode does not end well-formed"
        elif term in ("invocation", "diversity"):
            yield from self._process(term, turn, turn_index)
        elif term == "progress":
            yield from self._progress(turn_index, ends=ends)
        elif ends:
            yield from self._hit() if term == "outcome" else self._similarity()

    def _format(self, turn: Turn, *, ends: bool) -> Iterator[str]:
        if turn.malformed_reason is not None:
            yield f"the episode does not end in a well-formed recommendation: {turn.malformed_reason}"
        elif ends:
            yield "the episode ends in a well-formed recommendation"

    def _process(self, term: str, turn: Turn, turn_index: int) -> Iterator[str]:
        preferences = self._episode.preferences
        if turn.is_answered_search and preferences is not None:
            if term == "invocation":
                yield self._judged(preferences.judged[turn_index])
            return
        yield from self._grounded()
        if term == "diversity" and preferences is not None:
            yield (
                f"mean distance of the {len(preferences.kept)} different preferences {preferences.distance:.3f} "
                f"(at most {self._config.diversity_cap:g}), times {self._config.diversity_weight:g}"
            )

    def _judged(self, search: JudgedSearch) -> str:
        near = "" if search.dot is None else f" (nearest earlier one: dot product {search.dot:.3f})"
        match search.newness:
            case Newness.NEW:
                return f"{search.preference!r} asks for something new{near}"
            case Newness.NO_WORDS:
                return f"{search.preference!r} has no words, and asks for nothing of its own"
            case Newness.SAME_WORDS:
                return f"{search.preference!r} counts as the same as {search.like!r}: the same words"
            case Newness.FEW_NEW_CANDIDATES:
                least = self._config.min_new_share
                return f"only {search.new_share:.0%} of what {search.preference!r} found is new (least: {least:.0%})"
            case Newness.NEAR:
                return (
                    f"{search.preference!r} counts as the same as {search.like!r}: dot product {search.dot:.3f} "
                    f"(from {self._config.near_duplicate:g})"
                )

    def _grounded(self) -> Iterator[str]:
        outcome = self._episode.outcome
        assert outcome is not None
        yield f"process terms are worth the grounded share of the ranking, {outcome.grounded_share:.0%}"
        for name, titles in (
            ("unknown", outcome.unknown_titles),
            ("duplicate", outcome.duplicate_titles),
            ("never retrieved", outcome.never_retrieved_titles),
        ):
            if titles:
                yield f"{name}: {'; '.join(titles)}"

    def _hit(self) -> Iterator[str]:
        outcome, world = self._episode.outcome, self._game.world
        assert outcome is not None
        title = world.display(self._episode.target).title
        if outcome.hit_rank:
            rank, config = outcome.hit_rank, self._config
            yield (
                f"the target, {title!r}, is at place {rank}: {config.hit_weight:g} (1 + {config.hit_rank_step:g} x "
                + (f"{max(0, 11 - rank)})")
            )
        else:
            seen = "was among the candidates" if self._episode.target_in_pool else "was never retrieved"
            yield f"the target, {title!r}, is not in the ranking; it {seen}"

    def _similarity(self) -> Iterator[str]:
        outcome, world = self._episode.outcome, self._game.world
        assert outcome is not None
        (values,) = likeness_by_place(
            [outcome], [self._episode.target], text_vectors=world.item_text_vectors, id_vectors=world.item_id_vectors
        )
        for place, (line, value) in enumerate(zip(outcome.lines, values, strict=True), start=1):
            why = (
                "unknown title"
                if not line.item_ids
                else "duplicate"
                if line.is_duplicate
                else "never retrieved"
                if not line.is_retrieved
                else "the target"
                if self._episode.target in line.item_ids
                else "likeness"
            )
            yield f"{place:>2}. {value:.3f}  {line.title}  ({why})"

    def _progress(self, turn_index: int, *, ends: bool) -> Iterator[str]:
        if ends:
            yield "paid back at the end: the potential leaves the optimum alone"
            return
        answers = [turn.candidate_ids for turn in self._episode.turns[: turn_index + 1]]
        ranks = [ids.index(self._episode.target) + 1 for ids in answers if self._episode.target in ids]
        yield f"the target's best place so far is {min(ranks)}" if ranks else "the target was not found yet"


class _Paper:
    """Reasons by the published rules."""

    def __init__(self, game: Game, episode: Episode) -> None:
        self._game = game
        self._episode = episode

    def reasons(self, term: str, turn: Turn, turn_index: int) -> Iterator[str]:
        turns = self._episode.turns[: turn_index + 1]
        response = "".join(earlier.action + earlier.observation for earlier in turns).strip()
        num_calls = sum(earlier.is_answered_search for earlier in turns)
        if term == "invocation":
            yield f"{num_calls} retrievals"
        elif term == "diversity":
            yield f"{len(paper.preferences_of(response))} preferences in the text"
        elif self._episode.ended and turn_index == len(self._episode.turns) - 1:
            problem = paper.format_problem(response, num_calls, top_k=self._game.config.top_k)
            if term == "format":
                yield problem or "every rule of the format holds"
            elif problem is not None:
                yield "nothing: the format does not hold"
            else:
                yield from self._ranking(term, response)

    def _ranking(self, term: str, response: str) -> Iterator[str]:
        world, top_k = self._game.world, self._game.config.top_k
        titles = [paper.title_of(line) for line in paper.ranking_of(response)]
        target = world.display(self._episode.target).title
        if term == "outcome":
            place = paper.hit_place(titles, target, top_k=top_k)
            yield (
                f"the target, {target!r}, is part of line {place}"
                if place
                else f"the target, {target!r}, is in no line"
            )
        elif unknown := [title for title in titles if title.lower() not in world.row_by_lower_title]:
            yield f"unknown titles count 0: {'; '.join(unknown)}"
