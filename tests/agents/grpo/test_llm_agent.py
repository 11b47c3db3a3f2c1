import copy
import dataclasses
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.base import Agent, AgentError, EngineError
from agents.grpo.generation.base import Completion, GenerationRequest, SamplingParams
from agents.grpo.loss import token_logps
from agents.grpo.policy import Policy, save_policy
from agents.grpo.rollout import LIMITS, collect_groups
from agents.grpo.tokenizer import decode, encode
from agents.grpo.types import Rollout
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from agents.registry import make_agent
from deeprec_env.game import Game
from deeprec_env.protocol import (
    ITEM_LIST_BEGIN,
    ITEM_LIST_END,
    PREFERENCE_BEGIN,
    PREFERENCE_END,
    THINK_BEGIN,
    THINK_END,
    CutAction,
    MalformedReason,
    render_recommend,
    render_search,
)
from tests.agents.grpo.worlds import ScriptedGenerator, build_game, build_tiny_policy

TITLES = ["Iron Engine", "Twins", "Romance Tale 3"]
SCRIPT = [
    render_search("", reasoning="First."),
    render_search("noir; 1990s", reasoning="Then."),
    render_recommend(TITLES, reasoning="So."),
]


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    return build_tiny_policy(game)


def _scripted(policy: Policy, script: list[str], **options: int) -> tuple[LlmAgent, ScriptedGenerator]:
    generator = ScriptedGenerator(policy.tokenizer, script)
    options = {"max_context": 512, "max_tokens": 100, **options}
    return LlmAgent(generator, policy.tokenizer, **options), generator


def test_what_is_remembered_is_what_was_sampled_and_seen(game: Game, policy: Policy) -> None:
    agent, generator = _scripted(policy, SCRIPT)
    episodes = play(game, agent, [0, 1, 2], split="train")
    for key, episode in enumerate(episodes):
        trace = agent.trace(key)
        assert [turn.action for turn in episode.turns] == SCRIPT
        assert trace.prompt_ids == tuple(encode(policy.tokenizer, episode.prompt))
        assert decode(policy.tokenizer, trace.context) == episode.transcript
        for number, turn in enumerate(episode.turns):
            of_turn = [place for place, owner in enumerate(trace.turn_of) if owner == number]
            sampled = [trace.ids[place] for place in of_turn if trace.loss_mask[place]]
            given = [trace.ids[place] for place in of_turn if not trace.loss_mask[place]]
            assert sampled == encode(policy.tokenizer, SCRIPT[number])
            assert given == encode(policy.tokenizer, turn.observation)
        asked = [ids for owner, ids in generator.contexts if owner == key]
        # Every context begins with the one before it.
        assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(asked))


def test_every_turn_of_every_rollout_has_its_own_seed(game: Game, policy: Policy) -> None:
    agent, generator = _scripted(policy, SCRIPT)
    play(game, agent, [0, 1], split="train", num_samples=3)
    assert len(set(generator.seeds)) == len(generator.seeds) == 2 * 3 * len(SCRIPT)


def _only_rollout(game: Game, agent: LlmAgent) -> Rollout:
    (group,) = collect_groups(game, agent, [0], group_size=2, seed=0)
    assert group.num_failed == 0  # a limit is data, no failure
    return group.rollouts[0]


def _truncations(rollout: Rollout) -> dict[str, float]:
    names = ("rate", *LIMITS)
    return {str(name): rollout.metrics[f"rollout/truncated_{name}"] for name in names}


def test_a_turn_that_hits_its_limit_is_truncated(game: Game, policy: Policy) -> None:
    agent, _ = _scripted(policy, SCRIPT, max_tokens=2)
    (episode,) = play(game, agent, [0], split="train")
    assert (episode.truncated, episode.terminated, episode.well_formed) == (True, False, False)
    assert episode.turns[-1].malformed_reason is MalformedReason.TURN_TOKENS
    assert episode.turns[-1].action == decode(policy.tokenizer, agent.trace(0).ids)
    assert agent.trace(0).cut_turns == [0]
    # It earns what the same text earns that the policy ended itself.
    ended = game.start(0, "train")
    game.step([ended], [str(episode.turns[-1].action)])
    assert ended.terminated
    assert ended.reward == episode.reward < 0


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_context_is_truncated(game: Game, policy: Policy, room: int) -> None:
    """With no room at all, with room for part of the first turn, and with room for it but not for what follows."""
    length = len(encode(policy.tokenizer, game.start(0, "train").prompt))
    agent, generator = _scripted(policy, SCRIPT, max_context=length + room)
    (episode,) = play(game, agent, [0], split="train")
    assert (episode.truncated, episode.terminated, episode.well_formed) == (True, False, False)
    assert episode.turns[-1].malformed_reason is MalformedReason.EPISODE_TOKENS
    assert all(len(ids) < length + room for _, ids in generator.contexts)
    assert agent.trace(0).cut_turns


def test_every_limit_is_counted_under_its_own_name(game: Game, policy: Policy) -> None:
    none = dict.fromkeys(("rate", *map(str, LIMITS)), 0.0)
    assert _truncations(_only_rollout(game, _scripted(policy, SCRIPT)[0])) == none
    length = len(encode(policy.tokenizer, game.start(0, "train").prompt))
    strict = Game(game.world, dataclasses.replace(game.config, max_turns=1))
    terse = Game(game.world, dataclasses.replace(game.config, max_action_chars=10))
    for name, rules, options in (
        ("turn_tokens", game, {"max_tokens": 2}),
        ("episode_tokens", game, {"max_context": length + 1}),
        ("search_budget", strict, {}),
        ("text_budget", terse, {}),
    ):
        rollout = _only_rollout(rules, _scripted(policy, SCRIPT, **options)[0])
        assert _truncations(rollout) == {**none, "rate": 1.0, name: 1.0}
        assert rollout.metrics["rollout/format_ok_rate"] == 0.0


def test_a_cut_action_survives_copies_and_pickles() -> None:
    action = CutAction("half a turn", MalformedReason.TURN_TOKENS)
    for copied in (copy.deepcopy(action), pickle.loads(pickle.dumps(action))):
        assert copied == "half a turn"
        assert copied.reason is MalformedReason.TURN_TOKENS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"I see {ITEM_LIST_BEGIN}\n1. Twins\n{ITEM_LIST_END}\n{SCRIPT[0]}", MalformedReason.ITEM_LIST_WRITTEN),
        (f"{THINK_END}\n{SCRIPT[0]}", MalformedReason.MIXED_ACTIONS),
        (f"{PREFERENCE_BEGIN}{PREFERENCE_BEGIN} noir {PREFERENCE_END}", MalformedReason.PREFERENCE_TAGS),
        (PREFERENCE_END, MalformedReason.PREFERENCE_TAGS),
        (f"So. {THINK_BEGIN}{SCRIPT[0]}", MalformedReason.THINKING_REOPENED),
    ],
)
def test_a_policy_that_writes_what_it_must_not_is_data(
    game: Game, policy: Policy, text: str, reason: MalformedReason
) -> None:
    """Tags are tokens that a policy may sample at any place; the rollout ends, is kept whole, and is trained on."""
    agent, _ = _scripted(policy, [text])
    rollout = _only_rollout(game, agent)
    assert rollout.trace.ids == encode(policy.tokenizer, text)
    assert all(rollout.trace.loss_mask)
    assert rollout.reward < 0
    assert rollout.metrics["rollout/truncated_rate"] == rollout.metrics["rollout/format_ok_rate"] == 0.0
    (episode,) = play(game, _scripted(policy, [text])[0], [0], split="train")
    assert episode.turns[-1].malformed_reason is reason


class LosingGenerator(ScriptedGenerator):
    """Streams, one answer at a time, and gives up the second turn of the rollouts that are named."""

    def __init__(self, policy: Policy, lost: set[int]) -> None:
        super().__init__(policy.tokenizer, SCRIPT)
        self._lost, self._pending = lost, list[tuple[GenerationRequest, SamplingParams]]()

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        self._pending += [(request, params) for request in requests]

    def abandon(self) -> None:
        self._pending = []

    def collect(self) -> list[tuple[int, Completion]]:
        if not self._pending:
            return []
        request, params = self._pending.pop(0)
        if request.key in self._lost and self._next.get(request.key) == 1:
            raise EngineError("vLLM gave up 1 requests (error)", keys=[request.key])
        return [(request.key, self.generate([request], params)[0])]


def test_rollouts_that_the_engine_lost_are_in_no_baseline(game: Game, policy: Policy) -> None:
    agent = LlmAgent(LosingGenerator(policy, {1, 2, 3, 4}), policy.tokenizer, max_context=512, max_tokens=100)
    groups = collect_groups(game, agent, [0, 5], group_size=4, seed=0)
    assert [group.num_failed for group in groups] == [3, 1]
    assert [len(group.rollouts) for group in groups] == [1, 3]
    assert all(rollout.trace.num_turns == len(SCRIPT) for group in groups for rollout in group.rollouts)
    assert not groups[0].has_signal  # nobody to compare with
    with pytest.raises(AgentError, match="every one of 2 rollouts failed: vLLM gave up"):
        collect_groups(
            game,
            LlmAgent(LosingGenerator(policy, {0, 1}), policy.tokenizer, max_context=512),
            [0],
            group_size=2,
            seed=0,
        )


def test_answers_are_gathered_before_the_environment_steps(game: Game, policy: Policy) -> None:
    """An engine that hands out one answer at a time: a step waits for a sixteenth of those under way, not for all."""
    agent = LlmAgent(LosingGenerator(policy, set()), policy.tokenizer, max_context=512, max_tokens=100)
    sizes: list[int] = []
    collect = agent.collect

    def noted() -> list[tuple[int, str]]:
        sizes.append(len(found := collect()))
        return found

    agent.collect = noted  # type: ignore[method-assign]
    play(game, agent, list(range(8)), split="train", num_samples=8)
    assert sizes[0] == 64 // 16
    assert sizes[-1] == 1
    assert sum(sizes) == 64 * len(SCRIPT)


def test_groups_hold_each_users_rollouts(game: Game, policy: Policy) -> None:
    agent, _ = _scripted(policy, SCRIPT)
    groups = collect_groups(game, agent, [4, 2], group_size=3, seed=0)
    assert [group.user_index for group in groups] == [4, 2]
    for group in groups:
        assert len(group.rollouts) == 3
        for rollout in group.rollouts:
            assert len(rollout.turn_rewards) == rollout.trace.num_turns == len(SCRIPT)
            assert rollout.metrics["rollout/num_searches"] == 2
            terms = sum(value for name, value in rollout.metrics.items() if name.startswith("reward/"))
            assert terms == pytest.approx(rollout.reward)
        assert not group.has_signal
    prompts = [group.rollouts[0].transcript for group in groups]
    assert prompts[0] != prompts[1]


def test_sampled_rollouts_are_reproducible_and_their_logps_are_the_models(game: Game, policy: Policy) -> None:
    found = []
    for _ in range(2):
        agent = LlmAgent.of_policy(policy, PolicyCard(max_tokens=20), temperature=1.0, name="x")
        groups = collect_groups(game, agent, [0, 1], group_size=2, seed=5)
        found.append([rollout.trace for group in groups for rollout in group.rollouts])
    assert [trace.ids for trace in found[0]] == [trace.ids for trace in found[1]]
    assert len({tuple(trace.ids) for trace in found[0]}) == 4
    for trace in found[0]:
        ids = torch.tensor([trace.context])
        with torch.no_grad():
            logps = token_logps(policy.model(ids).logits[:, :-1], ids[:, 1:])[0, len(trace.prompt_ids) - 1 :]
        mask = np.array(trace.loss_mask)
        np.testing.assert_allclose(np.array(trace.logps)[mask], logps.numpy()[mask], atol=1e-4)


def test_a_saved_policy_plays_the_same(game: Game, policy: Policy, tmp_path: Path) -> None:
    folder = tmp_path / "rec" / "policy"
    save_policy(policy, folder)
    PolicyCard("llm after rec", {"prompt_style": "compact", "max_history": 4}, max_tokens=20).save(folder)
    loaded = make_agent(f"llm:{tmp_path / 'rec'}")
    assert isinstance(loaded, Agent)
    assert loaded.name == "llm after rec"
    direct = LlmAgent.of_policy(policy, PolicyCard(max_tokens=20), temperature=1.0, name="x")
    actions = [
        [turn.action for episode in play(game, agent, [0, 1], split="valid") for turn in episode.turns]
        for agent in (loaded, direct)
    ]
    assert actions[0] == actions[1]
    assert getattr(loaded, "game_options") == {"prompt_style": "compact", "max_history": 4}  # noqa: B009
    greedy = make_agent(f"llm:{tmp_path / 'rec'}?temperature=0")
    assert greedy.name == "llm after rec, temperature 0"


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"without config\.json; train one with"):
        make_agent(f"llm:{tmp_path}")


def test_a_broken_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"nonsense": 1}')
    with pytest.raises(AgentError, match=r"policy\.json"):
        PolicyCard.load(tmp_path)
