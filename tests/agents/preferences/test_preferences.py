"""Preferences written by models: what they are asked, what is taken, and that no target's title gets through."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from agents.base import AgentError
from agents.chat_client import BudgetSpent
from agents.cli import main
from agents.preferences.models import ChatModel, EngineModel, Reply, make_text_model
from agents.preferences.prompts import Asked, ask, choose_subjects
from agents.preferences.writing import WritingReport, preferences_file, write_preferences
from tests.agents.endpoints import Endpoint
from tests.agents.grpo.pretrained_models import save_pretrained_model
from tests.trm.worlds import colour_world
from trm.data.dataset import save_dataset
from trm.errors import DataFormatError
from trm.written_preferences import Prefix, read_written_preferences

WORLD = colour_world(num_users=20)
SUBJECTS = choose_subjects(WORLD, num_items=10, num_users=10, seed=0)


class Scripted:
    """Says what it is told to; may fail after some answers."""

    name = "scripted"

    def __init__(self, *answers: str, dies_after: int | None = None) -> None:
        self._answers = answers or ("- something bright\n- flat, and cheap",)
        self._dies_after = dies_after
        self.asked: list[Asked] = []

    def answer(self, asked: Sequence[Asked]) -> Iterator[Reply]:
        for one in reversed(asked):  # in any order
            if self._dies_after == len(self.asked):
                raise AgentError("gone")
            self.asked.append(one)
            yield Reply(one, self._answers[(len(self.asked) - 1) % len(self._answers)])


def write(model: Any, out: Path, **options: Any) -> WritingReport:
    return write_preferences(WORLD, model, SUBJECTS, out=out, batch_size=8, **options)


def test_the_most_popular_items_come_first_and_beginnings_end_before_the_training_target() -> None:
    counts = WORLD.splits.train_counts()
    items, prefixes = SUBJECTS[:10], SUBJECTS[10:]
    assert all(isinstance(item, int) for item in items)
    assert min(counts[item] for item in items) >= sorted(counts)[-10]  # type: ignore[index]
    assert len({prefix.user_index for prefix in prefixes if isinstance(prefix, Prefix)}) == 10
    for prefix in prefixes:
        assert isinstance(prefix, Prefix)
        assert 1 <= prefix.length < len(WORLD.splits.train_sequence(prefix.user_index))


def test_a_question_about_a_person_shows_the_beginning_alone() -> None:
    for user in range(WORLD.splits.num_users):
        sequence = [int(item) for item in WORLD.splits.train_sequence(user)]
        held_out = [WORLD.splits.example(split, user).target for split in ("valid", "test")]
        question = ask(Prefix(user, 3), WORLD, count=2, seed=0).messages[-1]["content"]
        shown = {int(line.split(" | ")[0].removeprefix("Widget ")) for line in question.splitlines()[1:-1]}
        assert shown == set(sequence[:3])
        assert not (set(sequence[3:] + held_out) - set(sequence[:3])) & shown


def test_texts_are_kept_and_asked_for_once(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    first = write(Scripted(), out)
    assert (first.num_asked, first.num_texts, first.num_known, first.num_without) == (20, 40, 0, 0)
    found = read_written_preferences(out, WORLD)
    assert set(found.by_item) | set(found.by_prefix) == set(SUBJECTS)
    assert set(found.by_item.values()) == {("something bright", "flat, and cheap")}
    again = Scripted()
    assert write(again, out).num_known == 20
    assert again.asked == []


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with pytest.raises(AgentError, match="gone"):
        write(Scripted(dies_after=11), out)
    whole = out.read_text()
    out.write_text(whole[:-5])  # the last line is cut short
    rest = Scripted()
    assert write(rest, out).num_known == 10
    assert len(rest.asked) == 10
    found = read_written_preferences(out, WORLD)
    assert set(found.by_item) | set(found.by_prefix) == set(SUBJECTS)
    assert len(out.read_text().splitlines()) == 21


def test_a_subject_without_a_text_is_asked_about_again_with_another_seed(tmp_path: Path) -> None:
    model = Scripted("like widget 1, or widget 2", "bright", "dull")  # the first names both items
    report = write_preferences(WORLD, model, [1, 2], out=tmp_path / "a.jsonl")
    assert [one.subject for one in model.asked] == [2, 1, 2]
    assert model.asked[0].seed != model.asked[2].seed
    assert report.left_out == {"title": 1}
    never = write_preferences(WORLD, Scripted("a Widget 3"), [3], out=tmp_path / "b.jsonl")
    assert (never.num_asked, never.num_texts, never.num_without) == (3, 0, 1)
    assert read_written_preferences(tmp_path / "b.jsonl", WORLD).num_texts == 0
    assert write_preferences(WORLD, Scripted(), [3], out=tmp_path / "b.jsonl").num_known == 1


def test_a_file_belongs_to_one_model_and_state_of_the_data(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    write(Scripted(), out)
    other = Scripted()
    other.name = "other"
    with pytest.raises(AgentError, match="another model: 'scripted', not 'other'; take another --out"):
        write(other, out)
    with pytest.raises(DataFormatError, match="another state of colours"):
        write_preferences(colour_world(seed=1), Scripted(), [1], out=out)
    out.write_text(out.read_text() + "{}\n")
    with pytest.raises(DataFormatError, match=r"a\.jsonl:22: expected written preferences"):
        write(Scripted(), out)


class WishEndpoint(Endpoint):
    """Wishes for the colour that it is shown last; every third answer names the title instead."""

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        question = body["messages"][-1]["content"]
        colour = question.splitlines()[-2].split(" | ")[1].split(";")[0]
        title = question.splitlines()[-2].split(" | ")[0]
        text = f"something {colour}" if len(self.requests) % 3 else f"{title}, please"
        message = {"role": "assistant", "content": text}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}


def test_an_endpoint_writes_many_at_a_time(tmp_path: Path) -> None:
    endpoint = WishEndpoint(fault=lambda number: httpx.Response(200, json={}) if number == 13 else None)
    model = ChatModel("http://e/v1", concurrency=4, transport=endpoint.transport)
    with pytest.raises(AgentError, match="no answer"):
        write(model, tmp_path / "a.jsonl")
    endpoint = WishEndpoint(fault=lambda number: time.sleep(0.01))
    model = ChatModel("http://e/v1", model="tiny", concurrency=4, transport=endpoint.transport)
    report = write(model, tmp_path / "a.jsonl")
    assert report.num_known >= 5
    found = read_written_preferences(tmp_path / "a.jsonl", WORLD)
    for item, texts in found.by_item.items():
        assert texts == (f"something {WORLD.catalog[item].attributes['colour'][0]}",)
    assert 1 < endpoint.max_at_once <= 4
    assert endpoint.requests[0]["max_tokens"] == 256


def test_an_endpoints_answer_that_ran_into_its_limit_is_cut() -> None:
    choice = {"message": {"content": "- red\n- gre"}, "finish_reason": "length"}
    endpoint = Endpoint(fault=lambda number: httpx.Response(200, json={"choices": [choice]}))
    model = ChatModel("http://e/v1", transport=endpoint.transport)
    (reply,) = model.answer([ask(1, WORLD, count=2, seed=0)])
    assert (reply.text, reply.is_cut) == ("- red\n- gre", True)


def test_a_budget_ends_the_writing_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    transport = WishEndpoint().transport
    with pytest.raises(BudgetSpent):
        write(ChatModel("http://e/v1", max_requests=10, concurrency=2, transport=transport), tmp_path / "a.jsonl")
    model = ChatModel("http://e/v1", max_requests=100, concurrency=2, transport=transport)
    assert write(model, tmp_path / "a.jsonl").num_known >= 5


def test_an_engine_of_the_project_writes(tmp_path: Path) -> None:
    from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams
    from agents.grpo.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["something bright"], vocab_size=300)
    seen: list[str] = []

    class Engine:
        def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
            seen.extend(tokenizer.decode(list(request.ids)) for request in requests)
            assert params.stop_ids == {tokenizer.eos_token_id}
            ids = (*tokenizer("1. bright\n2. Widget 1")["input_ids"], tokenizer.eos_token_id)
            return [Completion(tuple(ids), (0.0,) * len(ids), FinishReason.STOP) for _ in requests]

        def weights_changed(self) -> None:
            pass

    model = EngineModel(Engine(), tokenizer, name="micro", max_context=4096)
    report = write_preferences(WORLD, model, [1, Prefix(0, 2)], out=tmp_path / "a.jsonl")
    assert seen[0].endswith("Widget 1 | green; square\nWhat had they typed?\n\n")
    found = read_written_preferences(tmp_path / "a.jsonl", WORLD)
    assert found.by_item == {1: ("bright",)}
    assert report.left_out["title"] >= 1
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    list(model.answer([ask(1, WORLD, count=2, seed=0)]))
    assert seen[-1].startswith("<system>You write what people type")
    assert seen[-1].endswith("<assistant>")
    short = EngineModel(Engine(), tokenizer, name="micro", max_context=140, max_tokens=128)
    list(short.answer([ask(1, WORLD, count=2, seed=0)]))
    assert len(tokenizer(seen[-1])["input_ids"]) <= 12


def test_an_engines_answer_that_ran_into_its_limit_is_cut_and_a_model_goes_without_the_tags(tmp_path: Path) -> None:
    folder = save_pretrained_model(tmp_path / "hub")
    model = make_text_model(f"hf:{folder}?max_tokens=4")
    (reply,) = model.answer([ask(1, WORLD, count=2, seed=0)])
    assert isinstance(model, EngineModel)
    assert len(model._tokenizer) == len(AutoTokenizer.from_pretrained(folder))
    assert reply.is_cut


def test_a_policy_on_disk_is_a_model(tmp_path: Path) -> None:
    from agents.grpo.policy import PolicyConfig, build_policy, save_policy
    from agents.grpo.tokenizer import train_tokenizer

    config = PolicyConfig(hidden_size=16, num_layers=1, num_heads=1, max_tokens=600, vocab_size=300)
    save_policy(build_policy(config, train_tokenizer(["a b"], vocab_size=300), seed=0), tmp_path / "micro")
    model = make_text_model(f"hf:{tmp_path / 'micro'}?max_tokens=8&temperature=0")
    assert model.name == str(tmp_path / "micro")
    report = write_preferences(WORLD, model, [1, 2], out=tmp_path / "a.jsonl")
    assert report.num_asked >= 2


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("chat:", "expected chat:URL"),
        ("chat:http://e/v1?temprature=1", "chat takes"),
        ("hf:/nowhere/model", "/nowhere/model"),
        ("chat:http://e/v1?model=m&concurrency=0", "concurrency and max_tokens of at least 1"),
    ],
)
def test_a_wrong_model_is_one_sentence(spec: str, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        make_text_model(spec)


def test_the_command_writes_beside_the_prepared_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path))
    save_dataset(WORLD, tmp_path / "datasets" / "ml-1m")
    monkeypatch.setattr("agents.preferences.models.make_text_model", lambda spec: Scripted())
    command = ["preferences", "ml-1m", "--model", "any", "--items", "3", "--users", "2", "--quiet"]
    main([*command, "--min-fit", "0"])
    out = preferences_file("ml-1m", "scripted")
    assert out == tmp_path / "preferences" / "ml-1m" / "scripted.jsonl"
    assert len(out.read_text().splitlines()) == 6
    assert json.loads(out.read_text().splitlines()[0])["model"] == "scripted"
    said = capsys.readouterr().out
    assert "5 answers, 10 texts; lines left out: none; 0 subjects without a text, 0 known already" in said
    assert f"deeprec train-trm ml-1m --preferences {out}" in said
    judged = [*command, "--encoder", "hashing-64", "--min-fit", "1", "--out", str(tmp_path / "judged.jsonl")]
    main(judged)  # nothing fits better than every item, itself included
    assert "11 answers, 4 texts; lines left out: unfit 18; 3 subjects without a text" in capsys.readouterr().out
    for option, said in (("--texts", "must be at least 1"), ("--min-fit", "must be from 0 to 1, got 2.0")):
        with pytest.raises(SystemExit):
            main([*command, option, "0" if option == "--texts" else "2"])
        assert said in capsys.readouterr().err
