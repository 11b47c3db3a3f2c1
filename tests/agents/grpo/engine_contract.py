"""What every engine with a copy of the weights must do: transformers' tokens, weights that follow the policy, ends.

A module of tests inherits from `EngineContract` and brings the fixtures `engine` and `generator`.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.grpo.config import GrpoConfig, SftConfig
from agents.grpo.engines import Engine
from agents.grpo.generation.base import FinishReason, GenerationRequest, SamplingParams, StreamingGenerator
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.policy import Policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import decode, stop_token_ids
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import PolicyCard
from tests.agents.grpo.worlds import build_game, teacher_episodes

NEVER: frozenset[int] = frozenset()
"""No stop tokens."""
TOLERANCE = 1e-4
"""Of log-probabilities."""


def requests_of(policy: Policy, count: int = 12, *, length: int = 150) -> list[GenerationRequest]:
    """Return prompts with a shared beginning."""
    rng = np.random.default_rng(1)
    vocabulary = len(policy.tokenizer)
    shared = rng.integers(20, vocabulary, size=length).tolist()
    return [
        GenerationRequest(key, [*shared, *rng.integers(20, vocabulary, size=key + 1).tolist()], key)
        for key in range(count)
    ]


def assert_agrees(generator: StreamingGenerator, policy: Policy) -> None:
    """Greedy tokens are those of transformers, sampled ones have its log-probabilities."""
    requests, stops = requests_of(policy), stop_token_ids(policy.tokenizer)
    greedy = SamplingParams(24, stops, 0.0)
    expected = HFGenerator(policy.model).generate(requests, greedy)
    assert [one.ids for one in generator.generate(requests, greedy)] == [one.ids for one in expected]
    # At a temperature the log-probabilities are still those of temperature 1.
    for temperature in (1.0, 0.7):
        completions = generator.generate(requests, SamplingParams(24, stops, temperature))
        assert len({completion.ids for completion in completions}) > 1
        for request, completion in zip(requests, completions, strict=True):
            ids = torch.tensor([[*request.ids, *completion.ids]])
            with torch.no_grad():
                logps = policy.model(ids).logits[0, len(request.ids) - 1 : -1].log_softmax(-1)
            plain = logps[torch.arange(len(completion.ids)), list(completion.ids)]
            assert np.abs(np.array(completion.logps) - plain.numpy()).max() < TOLERANCE


class EngineContract:
    """The tests that both vLLM engines pass."""

    def test_it_samples_what_transformers_would(self, generator: StreamingGenerator, wide_policy: Policy) -> None:
        assert_agrees(generator, wide_policy)
        requests, params = requests_of(wide_policy), SamplingParams(24, NEVER)
        once = generator.generate(requests, params)
        assert [one.ids for one in generator.generate(requests[::-1], params)] == [one.ids for one in once[::-1]]
        seeded = [dataclasses.replace(request, seed=request.seed + 1000) for request in requests]
        assert all(one.ids != other.ids for one, other in zip(generator.generate(seeded, params), once, strict=True))

    @pytest.mark.parametrize("scale", [0.002, 0.3])
    def test_it_follows_the_weights(
        self, engine: Engine, generator: StreamingGenerator, wide_policy: Policy, scale: float
    ) -> None:
        """A small update and a large one; cached prefixes of the old weights and the tied head must not survive."""
        moved = Policy(copy.deepcopy(wide_policy.model), wide_policy.tokenizer)
        assert_agrees(generator, wide_policy)
        engine.follow(moved)
        with torch.no_grad():
            for number, parameter in enumerate(moved.model.parameters()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.add_(scale * noise)
            ids = torch.tensor([requests_of(wide_policy)[0].ids])
            difference = wide_policy.model(ids).logits.log_softmax(-1) - moved.model(ids).logits.log_softmax(-1)
        assert difference.abs().max() > 100 * TOLERANCE  # stale weights would show
        generator.weights_changed()
        assert_agrees(generator, moved)

    def test_ends_and_limits(self, generator: StreamingGenerator, wide_policy: Policy) -> None:
        every_token = SamplingParams(8, frozenset(range(len(wide_policy.tokenizer))))
        (stopped,) = generator.generate([GenerationRequest(0, [30, 31], 0)], every_token)
        assert len(stopped.ids) == len(stopped.logps) == 1
        assert stopped.finish is FinishReason.STOP
        (cut,) = generator.generate([GenerationRequest(0, [30, 31], 0)], SamplingParams(8, NEVER))
        assert len(cut.ids) == 8
        assert cut.finish is FinishReason.LENGTH

    def test_stop_strings_end_a_completion_as_they_do_with_transformers(
        self, generator: StreamingGenerator, wide_policy: Policy
    ) -> None:
        """The string spans two tokens and ends inside the second one, which is kept whole."""
        requests, tokenizer = requests_of(wide_policy), wide_policy.tokenizer
        sampled = HFGenerator(wide_policy.model).generate(requests, SamplingParams(24, NEVER, 0.0))[0].ids
        place = next(place for place in range(4, 24) if len(decode(tokenizer, sampled[place : place + 1]).encode()) > 1)
        stop = decode(tokenizer, sampled[place - 1 : place + 1])[:-1]
        watched = SamplingParams(24, NEVER, 0.0, (stop,))
        expected = HFGenerator(wide_policy.model, tokenizer).generate(requests, watched)
        found = generator.generate(requests, watched)
        assert [one.ids for one in found] == [one.ids for one in expected]
        assert [one.finish for one in found] == [one.finish for one in expected]
        assert expected[0].finish is FinishReason.STOP
        assert len(expected[0].ids) <= place + 1
        assert not decode(tokenizer, expected[0].ids).endswith(stop)

    def test_a_stage_trains_through_it(self, engine: Engine, wide_policy: Policy, tmp_path: Path) -> None:
        """The trainer itself fails if the engine's log-probabilities leave its own."""
        game = build_game()
        config = GrpoConfig(num_steps=3, users_per_step=3, group_size=4, learning_rate=3e-3, max_tokens=30)
        copied = Policy(copy.deepcopy(wide_policy.model), wide_policy.tokenizer)
        traces = [encode_episode(episode, wide_policy.tokenizer) for episode in teacher_episodes(game)]
        taught = SftConfig(learning_rate=1e-2, checkpoint_every=1000)
        warm = train_sft(copied, [Phase(traces, 8, 8)], taught, folder=tmp_path / "sft", seed=0, progress=False)
        setup = StageSetup("cold", game, list(range(8)), tmp_path, seed=0, card=PolicyCard(), engine=engine)
        train_stage(warm, config, setup, progress=False)
        records = read_metrics(tmp_path / METRICS_FILE)
        assert len(records) == 3
        differences = [record["loss/logp_difference_max"] for record in records if "loss/logp_difference_max" in record]
        assert differences
        assert max(differences) < 1e-4
