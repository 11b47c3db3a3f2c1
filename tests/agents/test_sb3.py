"""Training, checkpoints and play of Stable-Baselines3's policies, on the sample data."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
torch = pytest.importorskip("torch")

import deeprec_env  # noqa: E402, F401  (registers the environments)
from agents.base import AgentError  # noqa: E402
from agents.cli import main  # noqa: E402
from agents.cli.common import game_for  # noqa: E402
from agents.play import play  # noqa: E402
from agents.registry import make_agent  # noqa: E402
from agents.sb3 import trainer  # noqa: E402
from agents.sb3.checkpoint import build_model  # noqa: E402
from agents.sb3.config import ALGORITHMS, RUN_FILE, RunCard, TrainConfig  # noqa: E402
from agents.sb3.trainer import train  # noqa: E402
from agents.sb3.vec_env import ViewVecEnv  # noqa: E402
from agents.sb3_agent import PpoAgent  # noqa: E402
from deeprec_env.config import GameConfig  # noqa: E402
from deeprec_env.game import Game  # noqa: E402
from deeprec_env.numeric_views.menu import MenuView  # noqa: E402
from deeprec_env.world import load_world  # noqa: E402
from deeprec_env.wrappers import PreferenceMenu, PreferenceVector  # noqa: E402

SMALL = {
    "sb3_ppo": {"n_steps": 8, "batch_size": 32},
    "sb3_dqn": {"buffer_size": 500, "learning_starts": 32, "batch_size": 16},
    "sb3_sac": {"buffer_size": 500, "learning_starts": 32, "batch_size": 16},
}


@pytest.fixture(scope="module")
def game() -> Game:
    return Game(load_world("sample"), GameConfig(stage="rec"))


def _config(algorithm: str = "sb3_ppo", **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"num_components": 4} if algorithm == "sb3_sac" else {"num_phrases": 8}
    known = {"steps": 128, "num_envs": 4, "settings": SMALL[algorithm], "view_options": options}
    return TrainConfig(algorithm, **{**known, "checkpoint_every": 64, **changes})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trained_policy_plays_in_the_loop_as_in_the_wrapper(algorithm: str, game: Game, tmp_path: Path) -> None:
    train(_config(algorithm), game, tmp_path / "run")
    agent: Any = make_agent(f"{algorithm}:{tmp_path / 'run'}")
    episodes = play(game_for(game, agent), agent, range(12), split="test", batch_size=5)
    base = gym.make("DeepRec-Sample-v0", stage="rec", split="test")
    env = PreferenceVector(base, num_components=4) if algorithm == "sb3_sac" else PreferenceMenu(base, num_phrases=8)
    for episode in episodes[:3]:
        observation, _ = env.reset(options={"user_index": episode.user_index})
        ended = False
        while not ended:
            action, _ = agent._policy.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
        alone: Any = env.unwrapped
        assert alone.episode.transcript == episode.transcript
        assert alone.episode.reward == episode.reward


def test_the_training_environment_is_many_wrappers(game: Game) -> None:
    view = MenuView(game, num_phrases=8)
    env = ViewVecEnv(view, 3, split="valid")
    env.seed(5)
    alone = [PreferenceMenu(gym.make("DeepRec-Sample-v0", stage="rec", split="valid"), num_phrases=8) for _ in range(3)]
    starts = [menu.reset(seed=5 + place)[0] for place, menu in enumerate(alone)]
    _assert_rows(env.reset(), starts)
    num_ended = 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(0, 9, size=3)
        observed, rewards, ended, infos = env.step(actions)
        after = []
        for place, menu in enumerate(alone):
            observation, reward, terminated, truncated, _ = menu.step(actions[place])
            assert rewards[place] == np.float32(reward)
            assert ended[place] == (terminated or truncated)
            if ended[place]:
                num_ended += 1
                last = infos[place]["terminal_observation"]
                assert all(last[name] == pytest.approx(observation[name], abs=1e-5) for name in last)
                observation, _ = menu.reset()
            after.append(observation)
        _assert_rows(observed, after)
    drained = env.drain()
    assert len(drained) == num_ended > 0
    assert env.drain() == []


def _assert_rows(batch: Any, singles: list[Any]) -> None:
    for row, single in enumerate(singles):
        for name, value in single.items():
            assert batch[name][row] == pytest.approx(value, abs=1e-5)


def test_one_retriever_call_a_step(game: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    env = ViewVecEnv(MenuView(game, num_phrases=8), 16, split="valid")
    env.reset()
    calls = []
    retrieve = type(game.world.retriever).retrieve
    monkeypatch.setattr(
        type(game.world.retriever),
        "retrieve",
        lambda self, queries: calls.append(len(queries)) or retrieve(self, queries),
    )
    env.step(np.arange(16) % 8)
    assert calls == [16]


class _Killed(Exception):
    pass


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_killed_run_ends_in_the_same_numbers(
    algorithm: str, game: Game, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(algorithm, steps=192)
    train(config, game, tmp_path / "whole")
    save = trainer.save_checkpoint

    def save_and_die(out: Path, model: Any) -> None:
        save(out, model)
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save_and_die)
        with pytest.raises(_Killed):
            train(config, game, tmp_path / "cut")
    np.random.seed(99)
    torch.manual_seed(99)
    assert train(config, game, tmp_path / "cut") == 192
    whole, cut = (_weights(tmp_path / name) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert _rewards(tmp_path / "whole") == _rewards(tmp_path / "cut")


def _weights(run: Path) -> Any:
    return torch.load(run / "checkpoint" / "policy.pt", weights_only=True)


def _rewards(run: Path) -> list[tuple[int, float | None]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record.get("reward_mean")) for record in map(json.loads, lines)]


def test_a_run_can_be_made_longer_but_not_another(game: Game, tmp_path: Path) -> None:
    train(_config(), game, tmp_path)
    assert train(_config(steps=160), game, tmp_path) == 160
    assert train(_config(steps=100), game, tmp_path) == 160
    assert [step for step, _ in _rewards(tmp_path)] == [64, 128, 160]
    with pytest.raises(AgentError, match="another seed, settings"):
        train(_config(seed=1, settings={"n_steps": 16}), game, tmp_path)
    with pytest.raises(AgentError, match="another view_options"):
        train(_config(view_options={"num_phrases": 9}), game, tmp_path)
    (tmp_path / "checkpoint" / "model.zip").write_bytes(b"junk")
    with pytest.raises(AgentError, match="remove it to start anew"):
        train(_config(steps=400), game, tmp_path)


@pytest.mark.slow
def test_ppo_learns_to_end_well(game: Game, tmp_path: Path) -> None:
    """At first an episode of the vector view ends after two steps, half of the time before any search."""
    settings = {"n_steps": 16, "batch_size": 128, "learning_rate": 2e-3}
    options = {"num_components": 2}
    changes = {"num_envs": 64, "checkpoint_every": 16_384, "settings": settings, "view_options": options}
    config = _config(steps=16_384, view="vector", **changes)
    train(config, game, tmp_path)
    agent = make_agent(f"sb3_ppo:{tmp_path}")
    episodes = play(game_for(game, agent), agent, range(game.world.splits.num_users), split="test")
    assert np.mean([episode.well_formed for episode in episodes]) > 0.95
    rewards = [reward for _, reward in _rewards(tmp_path) if reward is not None]
    assert rewards[-1] > rewards[0] + 0.3


def test_masked_policies_choose_among_what_is_allowed(game: Game) -> None:
    view = MenuView(game, num_phrases=8)
    episodes = [view.game.start(user, "valid") for user in range(64)]
    for algorithm in ("sb3_ppo", "sb3_dqn"):
        model = build_model(_config(algorithm), ViewVecEnv(view, 4, split="valid"))
        played = [view.game.start(episode.user_index, "valid") for episode in episodes]
        for num_asked in range(5):
            observed = view.observe(played)
            masks = np.array([view.masks(episode) for episode in played])
            assert masks.sum(axis=1).tolist() == [8 - num_asked + (num_asked > 0)] * 64
            actions, _ = model.predict(observed, deterministic=algorithm == "sb3_dqn")
            assert masks[np.arange(64), actions].all()
            searches = np.where(actions == 8, masks[:, :8].argmax(axis=1), actions)
            view.game.step(played, view.texts(played, searches))


def test_masking_leaves_the_odds_of_the_rest(game: Game) -> None:
    view = MenuView(game, num_phrases=8)
    policy: Any = build_model(_config(), ViewVecEnv(view, 4, split="valid")).policy
    observed, _ = policy.obs_to_tensor(view.observe([view.game.start(0, "valid")]))
    latent, _ = policy.mlp_extractor(policy.extract_features(observed))
    logits = policy.action_net(latent)[0, :8]
    distribution = policy.get_distribution(observed).distribution
    assert torch.allclose(distribution.probs[0, :8], torch.softmax(logits, dim=0))
    assert distribution.probs[0, 8] == 0.0
    values, log_probs, entropy = policy.evaluate_actions(observed, torch.tensor([3]))
    assert log_probs.item() == pytest.approx(torch.log_softmax(logits, dim=0)[3].item(), abs=1e-5)
    assert entropy.item() == pytest.approx(-(logits.softmax(0) * logits.log_softmax(0)).sum().item(), abs=1e-5)
    assert values.item() == policy.predict_values(observed).item()


def test_mistakes(game: Game, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="train or valid, got test"):
        TrainConfig(split="test")
    with pytest.raises(ValueError, match="did you mean 'sb3_ppo'"):
        TrainConfig("sb3_pp")
    with pytest.raises(ValueError, match="--view to be menu for sb3_dqn"):
        TrainConfig("sb3_dqn", view="vector")
    with pytest.raises(ValueError, match=r"expected a setting of PPO .* got 'n_step'; did you mean 'n_steps'"):
        train(_config(settings={"n_step": 8}), game, tmp_path / "a")
    assert not (tmp_path / "a" / RUN_FILE).exists(), "the folder is free for the right options"
    with pytest.raises(AgentError, match="no trained policy"):
        PpoAgent.build(str(tmp_path / "nowhere"))
    train(_config(steps=32), game, tmp_path / "b")
    with pytest.raises(AgentError, match="name it sb3_ppo"):
        make_agent(f"sb3_dqn:{tmp_path / 'b'}")
    agent: Any = make_agent(f"sb3_ppo:{tmp_path / 'b'}")
    with pytest.raises(AgentError, match="enter"):
        play(game, agent, [0], split="test")
    other = shutil.copytree(tmp_path / "b", tmp_path / "c")
    card = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps({**card, "dataset": "ml-100k"}), encoding="utf-8")
    with pytest.raises(AgentError, match="trained on ml-100k"):
        game_for(game, make_agent(f"sb3_ppo:{other}"))
    (other / "run.json").write_text(json.dumps({**card, "view_options": {"num_phrases": 5}}), encoding="utf-8")
    with pytest.raises(AgentError, match="does not fit"):
        game_for(game, make_agent(f"sb3_ppo:{other}"))
    with pytest.raises(SystemExit):
        main(["train", "sb3_ppo", "--dataset", "sample", "--settings", "{oops"])
    assert "--settings to be JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "sb3_ppo", "--dataset", "sample", "--view-options", '{"phrases": 3}'])
    assert "phrases" in capsys.readouterr().err


def test_from_training_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ppo"
    settings = json.dumps(SMALL["sb3_ppo"])
    small = ["--steps", "64", "--num-envs", "4", "--settings", settings, "--quiet"]
    main(["train", "sb3_ppo", "--env", "DeepRec-Sample-v0", "--out", str(out), *small])
    assert f"{out}: 64 steps" in capsys.readouterr().out
    assert list((out / "tensorboard").iterdir())
    assert RunCard.load(out).training["split"] == "valid"
    agents = f"trm,sb3_ppo:{out}?name=ours"
    table = ["evaluate", "--dataset", "sample", "--users", "20", "--agents", agents, "--out", str(tmp_path / "table")]
    main([*table, "--baseline", "trm", "--quiet"])
    printed = capsys.readouterr().out
    assert "| trm | 20 |" in printed
    assert "| ours | 20 |" in printed
    assert "| ours | trm | 20 |" in printed
    with pytest.raises(SystemExit):
        main([*table, "--baseline", "tram", "--quiet"])
    assert "did you mean 'trm'" in capsys.readouterr().err
