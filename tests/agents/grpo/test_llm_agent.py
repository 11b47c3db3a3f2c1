import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.base import Agent, AgentError
from agents.grpo.loss import token_logps
from agents.grpo.policy import Policy, save_policy
from agents.grpo.rollout import collect_groups
from agents.grpo.tokenizer import decode, encode
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from agents.registry import make_agent
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
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


def test_a_turn_that_hits_its_limit_is_malformed_data(game: Game, policy: Policy) -> None:
    agent, _ = _scripted(policy, SCRIPT, max_tokens=2)
    (episode,) = play(game, agent, [0], split="train")
    assert not episode.well_formed
    assert agent.trace(0).cut_turns == [0]


def test_a_full_context_ends_the_episode(game: Game, policy: Policy) -> None:
    length = len(encode(policy.tokenizer, game.start(0, "train").prompt))
    agent, generator = _scripted(policy, SCRIPT, max_context=length + 30)
    (episode,) = play(game, agent, [0], split="train")
    assert episode.ended
    assert not episode.well_formed
    assert all(len(ids) < length + 30 for _, ids in generator.contexts)
    assert agent.trace(0).cut_turns


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
