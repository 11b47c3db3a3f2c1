"""Packed rows: the same numbers as sequences one by one, whichever attention takes them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from agents.base import AgentError
from agents.grpo.attention import PACKED_SDPA, choose_attention, pack_rows, packed_sdpa, packs
from agents.grpo.forward import sampled_logps
from agents.grpo.loss import token_logps

VOCAB = 30


def _model(attention: str, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        **options,
    )
    model = LlamaForCausalLM(config)
    choose_attention(model, attention, precision="fp32")
    return model


def _rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a group of 3 that shares its prompt, two of it their first turn, a stranger, and a row that ends early."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (5, 14), generator=rng)
    ids[1, :5], ids[3, :9] = ids[0, :5], ids[0, :9]
    mask = torch.zeros((5, 14), dtype=torch.bool)
    mask[:, 5:8] = True
    mask[:4, 11:13] = True
    mask[2, 13] = True
    return ids, mask


def _gradient(model: LlamaForCausalLM) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def _one_by_one(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and a gradient of plain forward passes of one sequence each."""
    model, found = _model("sdpa"), []
    for row in range(len(ids)):
        logits = model(ids[row : row + 1]).logits
        found.append(token_logps(logits[:, :-1], ids[row : row + 1, 1:])[0][mask[row, 1:]])
    logps = torch.cat(found)
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), _gradient(model)


def _found(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    logps, _ = sampled_logps(model, ids, mask)
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), _gradient(model)


def test_packed_rows_by_hand() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 9, 4, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool()
    shared = pack_rows(ids, mask, share_prefixes=True)
    # The last sampled tokens, 8 and 4, and what stands behind them are not needed.
    assert shared.ids_U.tolist() == [5, 6, 7, 9]
    assert shared.positions_U.tolist() == [0, 1, 2, 2]
    assert shared.place_NT.tolist() == [[0, 1, 2], [0, 1, 3]]
    # Tokens 7 and 8 of the first row are predicted from 6 and 7, token 4 of the second from 9.
    assert shared.before_M.tolist() == [1, 2, 3]
    plain = pack_rows(ids, mask, share_prefixes=False)
    assert plain.ids_U.tolist() == [5, 6, 7, 5, 6, 9]
    assert plain.positions_U.tolist() == [0, 1, 2, 0, 1, 2]
    assert plain.lengths == (3, 3)
    assert plain.before_M.tolist() == [1, 2, 5]


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 6), st.integers(2, 9), st.booleans())
def test_every_row_can_be_read_back(data: st.DataObject, num_rows: int, width: int, share: bool) -> None:
    row = st.lists(st.integers(0, 1), min_size=width, max_size=width)
    ids = torch.tensor(data.draw(st.lists(row, min_size=num_rows, max_size=num_rows)))
    mask = torch.tensor(data.draw(st.lists(row, min_size=num_rows, max_size=num_rows))).bool()
    mask[:, 0] = False
    mask[0, -1] = True
    packing = pack_rows(ids, mask, share_prefixes=share)
    for number, length in enumerate(packing.lengths):
        assert packing.ids_U[packing.place_NT[number, :length]].tolist() == ids[number, :length].tolist()
        assert packing.positions_U[packing.place_NT[number, :length]].tolist() == list(range(length))
        assert not mask[number, length + 1 :].any()
    assert packing.place_NT.flatten()[packing.home_U].tolist() == list(range(len(packing.ids_U)))
    prefixes = {tuple(ids[n, : t + 1].tolist()) for n, length in enumerate(packing.lengths) for t in range(length)}
    assert len(packing.ids_U) == (len(prefixes) if share else sum(packing.lengths))


@pytest.mark.parametrize("attention", ["sdpa", "auto", "eager"])
def test_packing_and_padding_change_neither_values_nor_gradients(attention: str) -> None:
    ids, mask = _rows()
    expected = _one_by_one(ids, mask)
    model = _model(attention)
    assert packs(model) == (attention == "auto")
    for one, other in zip(_found(model, ids, mask), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    wider = torch.nn.functional.pad(ids, (0, 7), value=3), torch.nn.functional.pad(mask, (0, 7))
    torch.testing.assert_close(_found(_model(attention), *wider)[1], expected[1], atol=1e-5, rtol=1e-5)


def test_a_shared_prompt_is_computed_once() -> None:
    ids, mask = _rows()
    model, seen = _model("auto"), []
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    sampled_logps(model, ids, mask)
    # Of 62 tokens 5 are last ones; 5 of the prompt and 9 of prompt and first turn stand in other rows too.
    lengths = [12, 12, 13, 12, 7]
    assert seen == [(1, sum(lengths) - 5 - 9, 32)]


def test_gradient_checkpointing_of_packed_rows_changes_nothing() -> None:
    ids, mask = _rows()
    model = _model("auto")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    torch.testing.assert_close(_found(model, ids, mask)[1], _one_by_one(ids, mask)[1], atol=1e-5, rtol=1e-5)


def test_a_packed_forward_leaves_plain_ones_as_they_are() -> None:
    """The same model samples: with a mask of its own, and padding on the left."""
    ids, mask = _rows()
    model = _model("auto")
    sampled_logps(model, ids, mask)
    left = torch.nn.functional.pad(ids, (3, 0), value=1)
    visible = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    for other in (_model("sdpa"), _model("eager")):
        with torch.no_grad():
            pair = [one(left, attention_mask=visible).logits[:, 3:] for one in (model, other)]
        torch.testing.assert_close(pair[0], pair[1], atol=1e-5, rtol=1e-5)


def _varlen(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Stand in for flash-attn: attention within the bounds that it is given, and nothing else."""
    assert attention_mask is None
    bounds = options["cu_seq_lens_q"]
    assert bounds.dtype == torch.int32
    assert torch.equal(bounds, options["cu_seq_lens_k"])
    assert options["max_length_q"] == options["max_length_k"] == int(bounds.diff().max())
    groups = query.shape[1] // key.shape[1]
    parts = [
        functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end].repeat_interleave(groups, dim=1),
            value[:, :, start:end].repeat_interleave(groups, dim=1),
            is_causal=True,
            scale=options["scaling"],
        )
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def test_flash_attention_is_told_where_sequences_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", _varlen)
    ids, mask = _rows()
    model = _model("sdpa")
    model.config._attn_implementation = "flash_attention_2"
    assert packs(model)
    for one, other in zip(_found(model, ids, mask), _one_by_one(ids, mask), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_model_that_loses_the_packing_has_no_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any, packing: object = None, **options: Any) -> tuple[Tensor, None]:
        return packed_sdpa(*args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED_SDPA, lost)
    logps, _ = sampled_logps(_model("auto"), *_rows())
    assert logps.isnan().all()


def test_windowed_attention_is_not_packed() -> None:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=VOCAB, num_key_value_heads=2, sliding_window=4, **size))
    choose_attention(model, "auto", precision="fp32")
    assert model.config._attn_implementation == "sdpa"
    assert not packs(model)


def test_attention_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AgentError, match=r"attention 'spda' does not work here: .*; choose sdpa"):
        _model("spda")


def test_the_name_of_the_attention_is_not_saved(tmp_path: Any) -> None:
    model = _model("auto")
    assert model.config._attn_implementation == PACKED_SDPA
    model.save_pretrained(tmp_path)
    assert PACKED_SDPA not in (tmp_path / "config.json").read_text()
