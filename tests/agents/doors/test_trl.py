"""One GRPO step of TRL on the sample data set, with a tiny Llama: what it trains on is what was sampled."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, Generator, SamplingParams
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.policy import Policy, PolicyConfig, build_policy
from agents.grpo.tokenizer import decode, encode, stop_token_ids, train_tokenizer
from agents.heuristic_agent import HeuristicAgent
from agents.play import play
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.world import load_world
from trm.errors import RetrieverRefused

pytest.importorskip("trl", reason="the extra trl is not installed")

NUM_GENERATIONS = 2
EXAMPLES = Path(__file__).parents[3] / "examples" / "doors"


@pytest.fixture(scope="module")
def game() -> Game:
    return Game(load_world("sample"), GameConfig(stage="rec", prompt_style="compact", max_history=4, k=6, top_k=3))


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    episodes = play(game, HeuristicAgent(), range(20), split="train")
    titles = [item.title for item in game.world.items[1:]]
    tokenizer = train_tokenizer([episode.transcript for episode in episodes], titles=titles, vocab_size=900)
    return build_policy(
        PolicyConfig(hidden_size=32, num_layers=2, num_heads=2, max_tokens=640, vocab_size=900), tokenizer, seed=0
    )


class Recorded:
    """An engine that keeps what it was asked and what it answered."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.asked: list[tuple[GenerationRequest, Completion]] = []

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        completions = self.generator.generate(requests, params)
        self.asked.extend(zip(requests, completions, strict=True))
        return completions

    def weights_changed(self) -> None:
        self.generator.weights_changed()

    def sampled(self, key: int) -> list[int]:
        """All that was sampled for an episode, turn after turn."""
        return [token for request, completion in self.asked if request.key == key for token in completion.ids]


class Searcher:
    """Searches by a wish of its own, then recommends what came back, badly spelled in every third episode."""

    def __init__(self, policy: Policy) -> None:
        self._tokenizer = policy.tokenizer

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        completions = []
        for request in requests:
            text = decode(self._tokenizer, request.ids)
            found = text.rpartition("<|begin_of_item_list|>")[2].split("<|end_of_item_list|>")[0]
            if text.count("<|begin_of_item_list|>") < 1 + request.key % 2:
                action = render_search(f"wish {request.key} {request.seed % 7}", reasoning="I look.")
            else:
                titles = [line.partition(". ")[2] for line in found.split("\n") if ". " in line][:3]
                titles = [*titles[:2], "no such title"] if request.key % 3 == 2 else titles
                action = render_recommend(titles, reasoning="So.")
            ids = encode(self._tokenizer, action)
            logps = tuple(-0.25 - place / 100 for place in range(len(ids)))
            completions.append(Completion(tuple(ids), logps, FinishReason.STOP))
        return completions

    def weights_changed(self) -> None:
        """It has none."""


def build_trainer(
    game: Game, policy: Policy, folder: Path, *, generator: Callable[[Any], Generator] | None = None, **options: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's word on experimental features, and on versions of vLLM
        from trl import GRPOConfig, GRPOTrainer

        from agents.doors.trl import GameRollouts, episode_reward

        class Watched(GRPOTrainer):  # type: ignore[misc, valid-type]
            """Keeps the tensors of each batch of rollouts."""

            batches: list[dict[str, Any]]

            def _generate_and_score_completions(self, inputs: Any) -> Any:
                output = super()._generate_and_score_completions(inputs)
                self.batches = [*getattr(self, "batches", []), output]
                return output

        rollouts = GameRollouts(game, max_tokens=60, generator=generator)
        config = GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            max_steps=1,
            per_device_train_batch_size=2 * NUM_GENERATIONS,
            num_generations=NUM_GENERATIONS,
            gradient_checkpointing=False,
            learning_rate=1e-3,
            beta=0.0,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **options,
        )
        return Watched(
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=episode_reward,
            train_dataset=rollouts.dataset(range(8)),
            rollout_func=rollouts,
            args=config,
        )


def train(trainer: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()


def real_tokens(batch: dict[str, Any], name: str, row: int) -> list[int]:
    """Return a row's tokens without its padding."""
    mask = batch[name.replace("ids", "mask")][row].bool()
    found: list[int] = batch[name][row][mask].tolist()
    return found


@pytest.fixture
def untouched(policy: Policy) -> Policy:
    """The policy, whose weights the trainer may change: they are put back."""
    return Policy(type(policy.model)(policy.model.config).float(), policy.tokenizer)


def test_ids_and_masks_are_what_was_sampled_and_the_reward_is_the_games(
    game: Game, policy: Policy, untouched: Policy, tmp_path: Path
) -> None:
    engine = Recorded(Searcher(policy))
    trainer = build_trainer(game, untouched, tmp_path, generator=lambda _: engine)
    before = [parameter.detach().clone() for parameter in untouched.model.parameters()]
    train(trainer)
    (batch,) = trainer.batches
    starts = [tuple(prompt.split("/")) for prompt in trainer._logs["prompt"]]
    rewards = trainer._logs["rewards"]["episode_reward"]
    assert len(starts) == len(rewards) == 2 * NUM_GENERATIONS
    seen_turns = set()
    for row, (split, user) in enumerate(starts):
        ids = real_tokens(batch, "completion_ids", row)
        mask = batch["tool_mask"][row][batch["completion_mask"][row].bool()].bool().tolist()
        sampled = [token for token, own in zip(ids, mask, strict=True) if own]
        assert sampled == engine.sampled(row)
        prompt_ids = real_tokens(batch, "prompt_ids", row)
        # Play the sampled turns once more: the game shows what the zeros of the mask stand for, and pays the reward.
        episode = game.start(int(user), split)
        assert prompt_ids == encode(policy.tokenizer, episode.prompt)
        replayed: list[int] = []
        for request, completion in engine.asked:
            if request.key == row:
                assert list(request.ids) == prompt_ids + replayed
                game.step([episode], [decode(policy.tokenizer, completion.ids)])
                replayed += [*completion.ids, *encode(policy.tokenizer, episode.turns[-1].observation)]
        assert ids == replayed
        assert episode.ended
        assert rewards[row] == pytest.approx(sum(turn.reward for turn in episode.turns))
        seen_turns.add(len(episode.turns))
    assert seen_turns == {2, 3}
    assert len(set(rewards)) > 1
    after = list(untouched.model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    logged = trainer.state.log_history[0]
    assert logged["rollout/num_searches"] == pytest.approx(1.5)
    assert logged["reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_the_trainers_own_model_is_sampled_and_its_logps_are_kept(
    game: Game, policy: Policy, untouched: Policy, tmp_path: Path
) -> None:
    engines: list[Recorded] = []

    def recorded(trainer: Any) -> Recorded:
        engines.append(Recorded(HFGenerator(trainer.accelerator.unwrap_model(trainer.model))))
        return engines[-1]

    trainer = build_trainer(game, untouched, tmp_path, generator=recorded)
    output = trainer.rollout_func([f"train/{user}" for user in (3, 5, 3)], trainer)
    (engine,) = engines
    # The larger groups come last, and each call counts its episodes from 0.
    asked = {tuple(request.ids + list(completion.ids)): completion for request, completion in engine.asked}
    rows = [tuple(p + c) for p, c in zip(output["prompt_ids"], output["completion_ids"], strict=True)]
    assert len(set(rows)) == 3
    for row, logps, mask in zip(rows, output["logprobs"], output["env_mask"], strict=True):
        assert logps == list(asked[row].logps)
        assert mask == [1] * len(logps)
    assert output["prompt_ids"][0] == output["prompt_ids"][2] != output["prompt_ids"][1]
    again = trainer.rollout_func(["train/3", "train/3"], trainer)
    assert again["completion_ids"][0] not in output["completion_ids"]


def test_a_failed_rollout_trains_nothing_and_has_no_reward(
    game: Game, policy: Policy, untouched: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = game.world.retriever

    class Flaky:
        def retrieve(self, queries: Any) -> Any:
            if any(query.preference.startswith("wish 0") for query in queries):
                raise RetrieverRefused("no zeros, please")
            return retriever.retrieve(queries)

    monkeypatch.setattr(game.world, "retriever", Flaky())
    trainer = build_trainer(game, untouched, tmp_path, generator=lambda _: Searcher(policy))
    train(trainer)
    (batch,) = trainer.batches
    rewards = trainer._logs["rewards"]["episode_reward"]
    (row,) = [row for row, reward in enumerate(rewards) if reward != reward]
    own = batch["completion_mask"][row] * batch["tool_mask"][row]
    assert int(own.sum()) == 0
    assert float(batch["advantages"][row]) == 0.0
    assert all(torch.isfinite(parameter).all() for parameter in untouched.model.parameters())


def test_masking_all_as_truncated_is_refused(game: Game, untouched: Policy, tmp_path: Path) -> None:
    trainer = build_trainer(game, untouched, tmp_path, mask_truncated_completions=True)
    with pytest.raises(ValueError, match="without"):
        trainer.rollout_func(["train/1"], trainer)
    untouched.model.generation_config.eos_token_id = sorted(stop_token_ids(untouched.tokenizer))
    knowing = build_trainer(game, untouched, tmp_path, mask_truncated_completions=True)
    assert len(knowing.rollout_func(["train/1"], knowing)["completion_ids"]) == 1


def test_a_prompt_of_another_data_set_is_refused(game: Game, untouched: Policy, tmp_path: Path) -> None:
    trainer = build_trainer(game, untouched, tmp_path)
    with pytest.raises(ValueError, match=r"expected a prompt such as 'train/17', got 'What is 2\+2\?'"):
        trainer.rollout_func(["What is 2+2?"], trainer)


def test_the_example_trains(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = runpy.run_path(str(EXAMPLES / "train_with_trl.py"))
        trainer = example["main"](["--steps", "2", "--out", str(tmp_path)])
    steps = [entry for entry in trainer.state.log_history if "rollout/format_ok_rate" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
