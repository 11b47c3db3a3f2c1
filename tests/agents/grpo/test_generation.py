import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, Generator, SamplingParams
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.loss import token_logps

VOCAB = 60
PARAMS = SamplingParams(max_tokens=20, stop_ids=frozenset(range(4)))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def _contexts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCAB, size=rng.integers(2, 90)).tolist() for _ in range(count)]


def _requests(contexts: list[list[int]], turn: int = 0) -> list[GenerationRequest]:
    return [GenerationRequest(key, ids, seed=1000 * turn + key) for key, ids in enumerate(contexts)]


def _plain_logps(model: LlamaForCausalLM, context: list[int], completion: Completion) -> torch.Tensor:
    ids = torch.tensor([context + list(completion.ids)])
    with torch.no_grad():
        logits = model(ids).logits
    return token_logps(logits[:, :-1], ids[:, 1:])[0, len(context) - 1 :]


def test_it_is_a_generator(model: LlamaForCausalLM) -> None:
    assert isinstance(HFGenerator(model), Generator)


def test_logps_equal_a_plain_forward_over_four_turns(model: LlamaForCausalLM) -> None:
    engine, contexts = HFGenerator(model), _contexts(7)
    for turn in range(4):
        completions = engine.generate(_requests(contexts, turn), PARAMS)
        for context, completion in zip(contexts, completions, strict=True):
            expected = _plain_logps(model, context, completion)
            np.testing.assert_allclose(completion.logps, expected, atol=1e-4)
        observations = _contexts(7, seed=turn + 1)
        contexts = [
            [*context, *completion.ids, *observation[: 3 + turn]]
            for context, completion, observation in zip(contexts, completions, observations, strict=True)
        ]


def test_a_request_does_not_depend_on_the_others(model: LlamaForCausalLM) -> None:
    requests = _requests(_contexts(6))
    together = HFGenerator(model).generate(requests, PARAMS)
    for request, completion in zip(requests, together, strict=True):
        assert HFGenerator(model).generate([request], PARAMS)[0].ids == completion.ids


def test_rows_may_leave_join_and_change(model: LlamaForCausalLM) -> None:
    engine, contexts = HFGenerator(model), _contexts(5)
    engine.generate(_requests(contexts), PARAMS)
    changed = [contexts[3], [*contexts[0][:2], 9, 9], [*contexts[1], 7]]
    requests = [GenerationRequest(3, changed[0], 1), GenerationRequest(0, changed[1], 2)]
    requests += [GenerationRequest(1, changed[2], 3), GenerationRequest(77, contexts[4], 4)]
    fresh = HFGenerator(model).generate(requests, PARAMS)
    assert [row.ids for row in engine.generate(requests, PARAMS)] == [row.ids for row in fresh]


def test_new_weights_are_seen_after_weights_changed(model: LlamaForCausalLM) -> None:
    engine, context = HFGenerator(model), _contexts(1)[0]
    first = engine.generate([GenerationRequest(0, context, 0)], PARAMS)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        engine.weights_changed()
        longer = [*context, *first.ids, 8]
        second = engine.generate([GenerationRequest(0, longer, 0)], PARAMS)[0]
        np.testing.assert_allclose(second.logps, _plain_logps(model, longer, second), atol=1e-4)
    finally:
        model.load_state_dict(before)


def test_it_stops_at_a_stop_token_or_at_the_limit(model: LlamaForCausalLM) -> None:
    completions = HFGenerator(model).generate(_requests(_contexts(30)), PARAMS)
    assert {completion.finish for completion in completions} == set(FinishReason)
    for completion in completions:
        stops = [token in PARAMS.stop_ids for token in completion.ids]
        assert not any(stops[:-1])
        assert stops[-1] == (completion.finish is FinishReason.STOP)
        assert stops[-1] or len(completion.ids) == PARAMS.max_tokens


def test_stop_strings_end_a_completion_with_the_token_that_completes_them(model: LlamaForCausalLM) -> None:
    """The string spans tokens and ends inside one; what is sampled up to there is what is sampled without it."""
    texts = [chr(ord("a") + token % 26) + ".." * (token % 2) for token in range(VOCAB)]
    tokenizer = _tokenizer_of(texts)
    free = SamplingParams(max_tokens=40, stop_ids=frozenset())
    watched = SamplingParams(max_tokens=40, stop_ids=frozenset(), stop_strings=("..c", "e.", "zz"))
    requests = _requests(_contexts(12))
    whole = HFGenerator(model, tokenizer).generate(requests, free)
    cut = HFGenerator(model, tokenizer).generate(requests, watched)
    assert {one.finish for one in cut} >= {FinishReason.STOP}
    for long, short in zip(whole, cut, strict=True):
        count = len(short.ids)
        assert short.ids == long.ids[:count]
        np.testing.assert_allclose(short.logps, long.logps[:count], atol=1e-5)
        written = ["".join(texts[token] for token in long.ids[:length]) for length in range(1, 41)]
        hits = [place for place, text in enumerate(written, 1) if any(stop in text for stop in watched.stop_strings)]
        assert count == (hits[0] if hits else 40)
        assert short.finish is (FinishReason.STOP if hits else FinishReason.LENGTH)


def test_stop_strings_want_a_tokenizer(model: LlamaForCausalLM) -> None:
    params = SamplingParams(max_tokens=4, stop_ids=frozenset(), stop_strings=("x",))
    with pytest.raises(ValueError, match="give one to HFGenerator"):
        HFGenerator(model).generate(_requests(_contexts(1)), params)
    with pytest.raises(ValueError, match="without an empty one"):
        SamplingParams(max_tokens=4, stop_ids=frozenset(), stop_strings=("",))


def _tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i decodes to texts[i]."""
    names = [f"{token}:{text}" for token, text in enumerate(texts)]
    tokenizer = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(r"\d+:"), ""), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_temperature_zero_is_greedy(model: LlamaForCausalLM) -> None:
    context = _contexts(1)[0]
    params = SamplingParams(max_tokens=1, stop_ids=frozenset(), temperature=0.0)
    (completion,) = HFGenerator(model).generate([GenerationRequest(0, context, 0)], params)
    with torch.no_grad():
        assert completion.ids[0] == int(model(torch.tensor([context])).logits[0, -1].argmax())


def test_it_samples_from_the_distribution(model: LlamaForCausalLM) -> None:
    context, count = [5, 6, 7], 4000
    params = SamplingParams(max_tokens=1, stop_ids=frozenset())
    requests = [GenerationRequest(key, context, seed=key) for key in range(count)]
    sampled = [completion.ids[0] for completion in HFGenerator(model).generate(requests, params)]
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([context])).logits[0, -1], dim=-1).double().numpy()
    counts = np.bincount(sampled, minlength=VOCAB)
    error = np.sqrt(expected * (1 - expected) / count) + 1e-4
    assert (np.abs(counts / count - expected) < 5 * error).all()


@pytest.mark.parametrize(("max_tokens", "temperature"), [(0, 1.0), (1, -0.1)])
def test_impossible_parameters_are_refused(max_tokens: int, temperature: float) -> None:
    with pytest.raises(ValueError, match="max_tokens >= 1"):
        SamplingParams(max_tokens, frozenset(), temperature)


def test_an_empty_context_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        HFGenerator(model).generate([GenerationRequest(0, [], 0)], PARAMS)
