import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.base import AgentError
from agents.grpo.batch import build_batch
from agents.grpo.checkpoint import list_checkpoints, save_checkpoint
from agents.grpo.config import GrpoConfig, SftConfig
from agents.grpo.drills import copy_drills
from agents.grpo.forward import batch_rows, sampled_logps
from agents.grpo.loss import token_logps
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import decode
from agents.grpo.trainer import GrpoTrainer, StageSetup, step_users
from agents.llm_agent import PolicyCard
from deeprec_env.game import Game
from tests.agents.grpo.worlds import build_game, build_tiny_policy, teacher_episodes

SFT = SftConfig(num_epochs=1, batch_size=8, learning_rate=1e-2, checkpoint_every=5)
GRPO = GrpoConfig(num_steps=4, users_per_step=3, group_size=4, learning_rate=1e-3, max_tokens=40, checkpoint_every=2)


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


def _setup(game: Game, folder: Path) -> StageSetup:
    return StageSetup("cold", game, list(range(12)), folder, seed=0, card=PolicyCard())


def _weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_encoded_episodes_are_their_transcripts(game: Game) -> None:
    policy = build_tiny_policy(game)
    for episode in teacher_episodes(game, num_samples=1):
        trace = encode_episode(episode, policy.tokenizer)
        assert decode(policy.tokenizer, trace.context) == episode.transcript
        sampled = [token for token, mine in zip(trace.ids, trace.loss_mask, strict=True) if mine]
        assert decode(policy.tokenizer, sampled) == "".join(turn.action for turn in episode.turns)


def test_drills_are_well_formed_dialogues_of_titles(game: Game) -> None:
    policy = build_tiny_policy(game)
    drills = copy_drills(game, policy.tokenizer, count=20, seed=0)
    assert [drill.ids for drill in drills] == [d.ids for d in copy_drills(game, policy.tokenizer, count=20, seed=0)]
    for drill in drills:
        text = decode(policy.tokenizer, drill.ids)
        shown = text.split("<|begin_of_item_list|>")[1].split("<|end_of_item_list|>")[0]
        answer = text.split("<recommendation_list>")[1].split("</recommendation_list>")[0]
        assert shown.strip() == answer.strip()


def test_sampled_logps_equal_a_plain_forward(game: Game) -> None:
    policy = build_tiny_policy(game)
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game, num_samples=1)[:4]]
    batch = build_batch(traces, [np.zeros(trace.num_turns) for trace in traces], pad_id=policy.pad_id)
    rows = [2, 0, 3]
    ids, mask = batch_rows(batch, rows)
    found, _ = sampled_logps(policy.model, ids, mask)
    expected = []
    for row in rows:
        context = torch.tensor([traces[row].context])
        with torch.no_grad():
            logps = token_logps(policy.model(context).logits[:, :-1], context[:, 1:])[0]
        expected.append(logps[len(traces[row].prompt_ids) - 1 :][torch.tensor(traces[row].loss_mask)])
    torch.testing.assert_close(found.detach(), torch.cat(expected), atol=1e-5, rtol=0)


def test_sft_lowers_the_loss(warm_policy: Path) -> None:
    losses = [record["loss/sft"] for record in read_metrics(warm_policy.parent / METRICS_FILE)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_sft_resumes_to_the_same_weights(game: Game, tmp_path: Path) -> None:
    policy = build_tiny_policy(game)
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game)]
    straight = train_sft(policy, [Phase(traces, 1, 8)], SFT, folder=tmp_path / "a", seed=0, progress=False)

    folder = tmp_path / "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.grpo.sft.save_checkpoint", _save_and_die)
        with pytest.raises(_Killed):
            train_sft(build_tiny_policy(game), [Phase(traces, 1, 8)], SFT, folder=folder, seed=0, progress=False)
    assert list_checkpoints(folder / "checkpoints")[-1].step == 5
    resumed = train_sft(
        build_tiny_policy(game, seed=9), [Phase(traces, 1, 8)], SFT, folder=folder, seed=0, progress=False
    )
    _assert_same(_weights(straight), _weights(resumed))


class _Killed(Exception):
    pass


def _save_and_die(*args: object, **options: object) -> None:
    save_checkpoint(*args, **options)  # type: ignore[arg-type]
    raise _Killed


def test_grpo_resumes_to_the_same_numbers(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path / "a"))
    straight.run(progress=False)
    # Stops after step 3, whose numbers are not in the checkpoint of step 2.
    first = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path / "b"))
    for _ in range(2):
        first.step()
    first.save()
    first.step()
    second = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path / "b"))
    assert second.resume() is not None
    assert second.next_step == 2
    second.run(progress=False)
    _assert_same(_weights(straight.policy), _weights(second.policy))
    numbers = [
        [(record["step"], record["reward_mean"]) for record in read_metrics(tmp_path / name / METRICS_FILE)]
        for name in ("a", "b")
    ]
    assert numbers[0][2:] == numbers[1]


def test_a_step_reports_what_the_design_lists_and_moves_the_policy(
    game: Game, warm_policy: Path, tmp_path: Path
) -> None:
    policy = load_policy(warm_policy)
    before = _weights(policy)
    trainer = GrpoTrainer(policy, dataclasses.replace(GRPO, kl_coef=0.01, num_minibatches=2), _setup(game, tmp_path))
    groups, metrics = trainer.step()
    names = {
        *(f"rollout/{name}" for name in ("reward_mean", "num_searches", "format_ok_rate", "hit_rate", "pool_recall")),
        *("rollout/ndcg_at_10", "reward/invocation", "reward/diversity", "reward/format"),
        *(f"loss/{name}" for name in ("policy", "kl", "entropy", "clip_fraction", "is_ratio_mean")),
        *("data/zero_variance_groups", "data/failed_rollouts", "rollout/ranking_loss", "rollout/retrieval_loss"),
        *(f"time/{name}" for name in ("generate_s", "update_s", "weights_s", "save_s", "step_s")),
        *("time/sampled_tokens_per_s", "time/trained_tokens_per_s"),
    }
    assert names <= metrics.keys()
    assert metrics["rollout/ranking_loss"] == pytest.approx(
        metrics["rollout/pool_recall"] - metrics["rollout/ndcg_at_10"]
    )
    assert metrics["rollout/retrieval_loss"] == pytest.approx(1 - metrics["rollout/pool_recall"])
    assert any(group.has_signal for group in groups)
    assert metrics["loss/logp_difference_max"] < 0.5
    assert any(not torch.equal(before[name], tensor) for name, tensor in policy.model.state_dict().items())


def test_tensorboard_has_the_scalars_and_three_transcripts(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    trainer = GrpoTrainer(load_policy(warm_policy), dataclasses.replace(GRPO, num_steps=1), _setup(game, tmp_path))
    trainer.run(progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (record,) = read_metrics(tmp_path / METRICS_FILE)
    assert {"rollout/pool_recall", "rollout/ranking_loss", "time/generate_s"} <= set(events.Tags()["scalars"])
    assert set(events.Tags()["scalars"]) == {name for name in record if "/" in name}
    rewards = []
    for name in ("worst", "median", "best"):
        (event,) = events.Tensors(f"transcript/{name}/text_summary")
        text = event.tensor_proto.string_val[0].decode()
        assert "<think>" in text
        rewards.append(float(text.split("reward ")[1].split(";")[0]))
    assert rewards == sorted(rewards)
    assert rewards[0] < rewards[2]


def test_on_policy_logps_of_engine_and_trainer_agree(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    _, metrics = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path)).step()
    assert metrics["loss/logp_difference_max"] < 1e-3
    assert metrics["loss/is_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["loss/clip_fraction"] == 0.0


def test_groups_without_variance_change_nothing(game: Game, tmp_path: Path) -> None:
    policy = build_tiny_policy(game)
    before = _weights(policy)
    # One token a turn: every rollout is malformed, every reward the same.
    config = dataclasses.replace(GRPO, max_tokens=1, num_steps=1)
    trainer = GrpoTrainer(policy, config, _setup(game, tmp_path))
    trainer.run(progress=False)
    _assert_same(before, _weights(policy))
    (record,) = read_metrics(tmp_path / METRICS_FILE)
    assert record["data/zero_variance_groups"] == GRPO.users_per_step
    assert record["stage"] == "cold"


def test_a_checkpoint_of_another_run_is_refused(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    trainer = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path))
    trainer.save()
    other = GrpoTrainer(load_policy(warm_policy), dataclasses.replace(GRPO, group_size=2), _setup(game, tmp_path))
    with pytest.raises(AgentError, match="another group_size"):
        other.resume()


def test_an_unfinished_checkpoint_is_no_checkpoint(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    trainer = GrpoTrainer(load_policy(warm_policy), GRPO, _setup(game, tmp_path))
    trainer.save()
    partial = tmp_path / "checkpoints" / ".partial_000009_1"
    partial.mkdir()
    (partial / "state.json").write_text(json.dumps({}))
    (found,) = list_checkpoints(tmp_path / "checkpoints")
    assert found.step == 0
    assert not partial.exists()


def test_every_user_comes_equally_often() -> None:
    users = [10, 11, 12, 13, 14, 15]
    picked = [user for step in range(8) for user in step_users(users, 3, step=step, seed=1)]
    assert {user: picked.count(user) for user in users} == dict.fromkeys(users, 4)
    assert set(picked[:6]) == set(users)


def test_every_step_has_a_user_of_each_stretch() -> None:
    users = list(range(100, 0, -1))
    for step in range(30):
        picked = step_users(users, 10, step=step, seed=3)
        assert [(100 - user) // 10 for user in picked] == list(range(10))


def test_few_users_may_come_twice_a_step() -> None:
    assert sorted(step_users([7, 8], 4, step=0, seed=0)) == [7, 7, 8, 8]
