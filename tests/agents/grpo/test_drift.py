"""What is trained is what was sampled, on tokenizers of several kinds; what text would have made of it is counted."""

import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from agents.grpo.batch import build_batch
from agents.grpo.drift import count_drift, num_changed, sampled_turns
from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams
from agents.grpo.generation.stops import StopWatch, turn_stops
from agents.grpo.rollout import collect_groups
from agents.grpo.tokenizer import decode, encode, train_tokenizer
from agents.grpo.types import TokenTrace
from agents.llm_agent import LlmAgent
from deeprec_env.game import Game
from deeprec_env.protocol import PREFERENCE_BEGIN, PREFERENCE_END, SPECIAL_TOKENS, STOP_STRINGS
from tests.agents.grpo.worlds import build_game, teacher_episodes

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(texts: list[str], *, words: str, single_digits: bool, tags: bool) -> PreTrainedTokenizerFast:
    """A tokenizer built as SmolLM2's is (digits one by one, GPT-2's words) or Qwen's (its own words), on this text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    parts = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if single_digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", *(SPECIAL_TOKENS if tags else ())]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", extra_special_tokens=special[1:])


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def tokenizers(game: Game) -> dict[str, PreTrainedTokenizerBase]:
    texts = [episode.transcript for episode in teacher_episodes(game, num_samples=1)]
    # Tags that are merged like other words, with what follows them: their last token holds more than the tag.
    texts += [f"{stop}{after}" for stop in STOP_STRINGS for after in ("\n\n", ">\n", " the")] * 40
    return {
        "ours": train_tokenizer(texts, vocab_size=600),
        "smollm2": _byte_level(texts, words=_GPT2_WORDS, single_digits=True, tags=True),
        "qwen": _byte_level(texts, words=_QWEN_WORDS, single_digits=False, tags=True),
        "smollm2, tags in pieces": _byte_level(texts, words=_GPT2_WORDS, single_digits=True, tags=False),
        "qwen, tags in pieces": _byte_level(texts, words=_QWEN_WORDS, single_digits=False, tags=False),
    }


KINDS = ("ours", "smollm2", "qwen", "smollm2, tags in pieces", "qwen, tags in pieces")


class RandomWriter:
    """An engine that samples any ids but tags, then a search; it ends where a real one does, and notes what it gave."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._plain = [token for token in range(len(tokenizer)) if not set("<|>") & set(decode(tokenizer, [token]))]
        self.given: dict[int, list[tuple[int, ...]]] = {}

    def generate(self, requests: list[GenerationRequest], params: SamplingParams) -> list[Completion]:
        return [self._write(request, params) for request in requests]

    def _write(self, request: GenerationRequest, params: SamplingParams) -> Completion:
        rng = random.Random(request.seed)
        wanted = rng.choices(self._plain, k=20) + encode(self._tokenizer, f"{PREFERENCE_BEGIN}noir{PREFERENCE_END}\n\n")
        watch, ids = StopWatch(self._tokenizer, params.stop_strings), []
        finish = FinishReason.LENGTH
        for token in wanted[: params.max_tokens]:
            ids.append(token)
            if token in params.stop_ids or watch.completed(ids):
                finish = FinishReason.STOP
                break
        self.given.setdefault(request.key, []).append(tuple(ids))
        return Completion(tuple(ids), tuple(-float(place + 1) for place in range(len(ids))), finish)

    def weights_changed(self) -> None:
        self.given = {}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_exactly_what_was_sampled(
    game: Game, tokenizers: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    engine = RandomWriter(tokenizer)
    agent = LlmAgent(engine, tokenizer, max_context=4096, max_tokens=200)
    groups = collect_groups(game, agent, [0, 1], group_size=2, seed=0)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert sum(rollout.metrics["rollout/num_searches"] for rollout in rollouts) > 0
    advantages = [np.zeros(rollout.trace.num_turns) for rollout in rollouts]
    batch = build_batch([rollout.trace for rollout in rollouts], advantages, pad_id=0)
    for row, rollout in enumerate(rollouts):
        given = [token for turn in engine.given[row] for token in turn]
        assert batch.ids_NT[row][batch.mask_NT[row]].tolist() == given
        logps = [-float(place + 1) for turn in engine.given[row] for place in range(len(turn))]
        assert batch.logps_NT[row][batch.mask_NT[row]].tolist() == logps
        assert rollout.metrics["rollout/drift_tokens"] == count_drift(tokenizer, rollout.trace) > 0
        assert rollout.metrics["rollout/drift_rate"] == pytest.approx(
            rollout.metrics["rollout/drift_tokens"] / len(given)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_ends_with_the_token_that_completes_its_closing_tag(
    game: Game, tokenizers: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    stops = turn_stops(tokenizer)
    assert bool(stops.strings) == ("pieces" in kind)
    engine = RandomWriter(tokenizer)
    agent = LlmAgent(engine, tokenizer, max_context=4096, max_tokens=200)
    collect_groups(game, agent, [0], group_size=4, seed=1)
    turns = [turn for of_key in engine.given.values() for turn in of_key]
    for turn in turns:
        assert PREFERENCE_END in decode(tokenizer, turn)
        assert PREFERENCE_END not in decode(tokenizer, turn[:-1])


def test_a_stop_string_may_end_inside_a_token_which_is_kept_whole(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    tokenizer = tokenizers["qwen, tags in pieces"]
    (last,) = {ids[-1] for ids in [encode(tokenizer, f"noir{PREFERENCE_END}\n\n")]}
    assert decode(tokenizer, [last]).endswith(">\n\n")
    watch = StopWatch(tokenizer, STOP_STRINGS)
    ids = encode(tokenizer, f"漢字 noir{PREFERENCE_END}\n\n")
    assert [watch.completed(ids[:length]) for length in range(1, len(ids) + 1)] == [False] * (len(ids) - 1) + [True]


def test_a_window_that_begins_within_a_character_still_finds_the_string(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    tokenizer = tokenizers["smollm2, tags in pieces"]
    for before in ("", "é" * 30, "漢" * 30 + "x"):
        ids = encode(tokenizer, before + PREFERENCE_END)
        watch = StopWatch(tokenizer, STOP_STRINGS)
        assert watch.completed(ids)
        assert not watch.completed(ids[:-1])
    assert not StopWatch(tokenizer, ()).completed(encode(tokenizer, PREFERENCE_END))


@pytest.mark.parametrize(
    ("ids", "again", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([], [], 0),
        ([1, 2, 3, 4], [1, 9, 4], 2),  # 2 and 3 have become 9
        ([1, 5, 2, 3, 4], [7, 5, 8, 4], 3),  # 5 and 4 come back
        ([1, 2], [], 2),
        ([1, 1, 1], [1, 1], 1),
    ],
)
def test_drift_by_hand(ids: list[int], again: list[int], expected: int) -> None:
    assert num_changed(ids, again) == expected


def test_drift_is_that_of_the_sampled_tokens_alone(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = tokenizers["ours"]
    whole = encode(tokenizer, "I rank")
    letters = [encode(tokenizer, letter)[0] for letter in "I rank"]
    assert len(letters) > len(whole)
    trace = TokenTrace(tuple(letters))
    trace.append_turn(letters, [0.0] * len(letters))
    trace.append_observation(letters)
    trace.append_turn(whole, [0.0] * len(whole))
    assert sampled_turns(trace) == [letters, whole]
    assert count_drift(tokenizer, trace) == num_changed(letters, whole) > 0
