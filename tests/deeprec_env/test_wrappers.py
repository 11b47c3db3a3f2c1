import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

import deeprec_env  # noqa: F401  (registers the environments)
from deeprec_env.env import DeepRecEnv
from deeprec_env.game import Game
from deeprec_env.numeric_views.base import LATEST, LATEST_WEIGHT, TREND_WEIGHT
from deeprec_env.numeric_views.menu import MenuView
from deeprec_env.numeric_views.vector import VectorView
from deeprec_env.protocol import ActionKind, render_search
from deeprec_env.world import World, load_world
from deeprec_env.wrappers import OWN_ORDER, PreferenceMenu, PreferenceVector, TranscriptObservation
from trm.types import RetrievalQuery

ENV_ID = "DeepRec-Sample-v0"


def _base(**kwargs: Any) -> gym.Env:
    return gym.make(ENV_ID, split="test", **kwargs)


def _menu(**kwargs: Any) -> PreferenceMenu:
    return PreferenceMenu(_base(**kwargs), num_phrases=12)


def _vector(**kwargs: Any) -> PreferenceVector:
    return PreferenceVector(_base(**kwargs), num_components=8)


VIEWS: list[Callable[..., Any]] = [_menu, _vector, lambda **kwargs: TranscriptObservation(_base(**kwargs))]


def _episode(env: Any) -> Any:
    return env.unwrapped.episode


@pytest.mark.parametrize("build", VIEWS)
@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_check_env_is_silent(build: Callable[..., Any], stage: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        check_env(build(stage=stage), skip_render_check=True)


@pytest.mark.parametrize("build", [_menu, _vector, lambda: PreferenceVector(_base())])
def test_check_env_of_stable_baselines3_is_silent(build: Callable[..., Any]) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(build(), warn=True)


@pytest.mark.parametrize(("algorithm", "build"), [("PPO", _menu), ("PPO", _vector), ("DQN", _menu), ("SAC", _vector)])
def test_stable_baselines3_takes_the_views(algorithm: str, build: Callable[..., Any]) -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    options = {"PPO": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}}.get(algorithm, {"learning_starts": 32})
    model = getattr(stable_baselines3, algorithm)("MultiInputPolicy", build(), seed=0, device="cpu", **options)
    model.learn(total_timesteps=40)
    action, _ = model.predict(build().reset(seed=0)[0], deterministic=True)
    assert build().action_space.contains(action)


@pytest.mark.parametrize("build", VIEWS)
def test_equal_seeds_give_equal_episodes(build: Callable[..., Any]) -> None:
    first, second = build(), build()
    assert data_equivalence(first.reset(seed=3), second.reset(seed=3))
    first.action_space.seed(1)
    for _ in range(50):
        action = first.action_space.sample()
        left, right = first.step(action), second.step(action)
        assert data_equivalence(left, right)
        assert left[0] in first.observation_space
        if left[2] or left[3]:
            assert data_equivalence(first.reset(), second.reset())


@pytest.mark.parametrize("build", VIEWS)
def test_spec_and_pickle(build: Callable[..., Any]) -> None:
    env = build()
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec
    assert gym.make(spec).action_space == env.action_space
    env.reset(seed=0)
    env.action_space.seed(0)
    copy = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    assert data_equivalence(copy.step(action), env.step(action))
    assert copy.unwrapped.game.world is env.unwrapped.game.world


def test_the_transcript_grows() -> None:
    env = TranscriptObservation(_base())
    prompt, _ = env.reset(seed=0)
    search = render_search("Western")
    after, *_ = env.step(search)
    assert after == prompt + search + _episode(env).turns[0].observation
    end, *_ = env.step("junk")
    assert end == after + "junk"


def test_the_menu_plays_the_text_game() -> None:
    menu, text = _menu(), _base()
    assert menu.phrases[0] == OWN_ORDER
    assert len(set(menu.phrases)) == len(menu.phrases) == 12
    observation, info = menu.reset(seed=2)
    assert info == text.reset(seed=2)[1]
    liked = [sum(phrase in values for values in _attributes(menu)) / len(_attributes(menu)) for phrase in menu.phrases]
    assert observation["liked"] == pytest.approx(np.array(liked))
    for action in (3, 0, 5, 12):
        observation, *left = menu.step(action)
        _, *right = text.step(_episode(menu).turns[-1].action)
        assert left == right
    assert observation["asked"].nonzero()[0].tolist() == [0, 3, 5]
    assert _episode(menu).well_formed
    assert [turn.preference for turn in _episode(menu).turns] == [menu.phrases[3], "", menu.phrases[5], None]


def _attributes(env: Any) -> list[list[str]]:
    catalog = env.unwrapped.game.world.catalog
    return [[v for values in catalog[i].attributes.values() for v in values] for i in _episode(env).history]


def test_recommending_ranks_the_pool_by_the_fused_score() -> None:
    menu = PreferenceMenu(_base(), num_phrases=6, own_weight=2.0, recent=None)
    menu.reset(seed=4)
    menu.step(2)
    menu.step(4)
    episode = _episode(menu)
    retriever = menu.unwrapped.game.world.retriever  # type: ignore[attr-defined]
    history = episode.history
    scores = 2.0 * TREND_WEIGHT * np.log1p(menu.unwrapped.game.world.splits.trend)  # type: ignore[attr-defined]
    for preference, weight in (("", 2.0), (menu.phrases[2], 1.0), (menu.phrases[4], 1.0)):
        query = retriever.query_vectors([RetrievalQuery(history, preference)])[0]
        scores += weight * (retriever.frozen.item_vectors @ query)
    *_, info = menu.step(6)
    recommended = list(info["outcome"]["recommended_ids"])
    assert recommended == sorted(episode.pool, key=lambda item_id: -scores[item_id])[:10]
    assert info["outcome"]["never_retrieved_titles"] == ()


@pytest.mark.parametrize("recent", [3, LATEST + 1])
def test_the_ranking_looks_at_the_latest_choices_only(recent: int) -> None:
    menu = PreferenceMenu(_base(), num_phrases=6, own_weight=2.0, recent=recent)
    menu.reset(seed=4)
    menu.step(2)
    episode = _episode(menu)
    retriever = menu.unwrapped.game.world.retriever  # type: ignore[attr-defined]
    assert len(episode.history) > recent
    choices, latest = episode.history[-recent:], episode.history[-min(recent, LATEST) :]
    asked = [(choices, ""), (choices, menu.phrases[2]), (latest, "")]
    weights = np.array([2.0, 1.0, 2.0 * LATEST_WEIGHT])
    queries = [RetrievalQuery(*what) for what in asked]
    scores = retriever.frozen.item_vectors @ (weights @ retriever.query_vectors(queries))
    scores += 2.0 * TREND_WEIGHT * np.log1p(menu.unwrapped.game.world.splits.trend)  # type: ignore[attr-defined]
    *_, info = menu.step(6)
    assert list(info["outcome"]["recommended_ids"]) == sorted(episode.pool, key=lambda item_id: -scores[item_id])[:10]


def test_what_is_missing_from_the_pool() -> None:
    menu = PreferenceMenu(_base(), num_phrases=12, recent=None, trend_weight=0.0)
    start, _ = menu.reset(seed=1)
    assert start["progress"].tolist() == [0.0, 0.0, 0.0, 0.0]
    table = _carried(menu)
    retriever = menu.unwrapped.game.world.retriever  # type: ignore[attr-defined]
    (best,) = retriever.retrieve([RetrievalQuery(_episode(menu).history, "", k=10)])
    assert start["missing"] == pytest.approx(table[list(best.item_ids)].mean(axis=0))
    after, *_ = menu.step(0)
    assert after["progress"][3] == 1.0
    assert not after["missing"].any()


def _carried(menu: PreferenceMenu) -> np.ndarray:
    catalog = menu.unwrapped.game.world.catalog  # type: ignore[attr-defined]
    values = [{v for vs in catalog[i].attributes.values() for v in vs} for i in range(1, catalog.num_items + 1)]
    return np.array([[False] * len(menu.phrases), *([phrase in has for phrase in menu.phrases] for has in values)])


@pytest.mark.parametrize("view_class", [MenuView, VectorView])
def test_many_episodes_are_seen_as_each_alone(view_class: Callable[..., Any]) -> None:
    view = view_class(Game(load_world("sample")))
    episodes = [view.game.start(user, "test") for user in range(6)]
    view.action_space.seed(0)
    for _ in range(3):
        actions = [view.action_space.sample() for _ in episodes]
        if view_class is VectorView:
            for action in actions:
                action[-1] = -1.0
        else:
            actions = [min(action, 4) for action in actions]
        assert view.texts(episodes, actions) == [view.texts([e], [a])[0] for e, a in zip(episodes, actions)]
        view.game.step(episodes, view.texts(episodes, actions))
        together = view.observe(episodes)
        for row, episode in enumerate(episodes):
            for name, rows in view.observe([episode]).items():
                assert rows[0] == pytest.approx(together[name][row], abs=1e-5)


def test_own_order_alone_recommends_what_it_found() -> None:
    menu = PreferenceMenu(_base(), num_phrases=12, recent=None, trend_weight=0.0)
    menu.reset(seed=1)
    *_, info = menu.step(0)
    *_, end = menu.step(12)
    assert end["outcome"]["recommended_ids"] == info["candidate_ids"][:10]


def test_a_small_pool_is_eked_out() -> None:
    menu = PreferenceMenu(_base(k=3), num_phrases=4)
    menu.reset(seed=1)
    menu.step(1)
    *_, terminated, _, info = menu.step(4)
    assert terminated
    assert info["outcome"]["well_formed"]
    assert len(set(info["outcome"]["recommended_ids"])) == 10
    assert len(info["outcome"]["never_retrieved_titles"]) == 7


def test_masks_follow_the_game() -> None:
    menu = _menu(max_turns=2)
    menu.reset(seed=0)
    assert menu.action_masks().tolist() == [True] * 12 + [False]
    menu.step(4)
    assert menu.action_masks().tolist() == [i != 4 for i in range(12)] + [True]
    menu.step(5)
    assert menu.action_masks().tolist() == [False] * 12 + [True]
    early = _menu()
    early.reset(seed=0)
    *_, info = early.step(12)
    assert info["malformed_reason"] == "no_search"


def test_a_vector_goes_straight_to_the_recommender() -> None:
    env = PreferenceVector(_base())
    world = load_world("sample")
    env.reset(seed=2)
    action = np.zeros(world.encoder.dim + 1, dtype=np.float32)
    action[:-1] = world.encoder.encode(["Western"])[0] * 0.5
    *_, info = env.step(action)
    (expected,) = world.retriever.retrieve([RetrievalQuery(_episode(env).history, "Western")])
    assert info["candidate_ids"] == expected.item_ids
    assert info["preference"].startswith("Western (vector ")
    *_, own = env.step(np.zeros_like(action))
    assert own["preference"] == ""
    action[-1] = 1.0
    *_, terminated, _, end = env.step(action)
    assert terminated
    assert end["outcome"]["well_formed"]
    assert _episode(env).turns[-1].kind is ActionKind.RECOMMEND


def test_equal_vectors_are_one_preference_and_others_are_not() -> None:
    env = _vector(stage="cold")
    env.reset(seed=0)
    action = np.array([1, 0, 0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
    env.step(action)
    assert env.step(action * np.float32(0.5))[1] == 0.0
    other = np.array([0, 0, -1, 0, 0, 0, 0, 0, -1], dtype=np.float32)
    observation, reward, *_ = env.step(other)
    assert reward > 0.5
    assert observation["asked"] == pytest.approx([2 / 3, 0, -1 / 3, 0, 0, 0, 0, 0], abs=1e-5)


def test_text_worlds_stay_as_they_are() -> None:
    env = _vector()
    assert env.unwrapped.game.world is not load_world("sample")  # type: ignore[attr-defined]
    assert _vector().unwrapped.game.world is env.unwrapped.game.world  # type: ignore[attr-defined]
    assert _base().unwrapped.game.world is load_world("sample")  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [_menu, _vector])
@pytest.mark.parametrize("shared_memory", [False, True])
def test_numeric_views_in_parallel(build: Callable[..., Any], shared_memory: bool) -> None:
    apart, together = AsyncVectorEnv([build] * 2, shared_memory=shared_memory), SyncVectorEnv([build] * 2)
    try:
        assert data_equivalence(apart.reset(seed=1)[0], together.reset(seed=1)[0])
        apart.action_space.seed(1)
        for _ in range(6):
            actions = apart.action_space.sample()
            assert data_equivalence(apart.step(actions)[:4], together.step(actions)[:4])
    finally:
        apart.close()


def test_misuse(world: World) -> None:
    with pytest.raises(TypeError, match="expected a DeepRecEnv"):
        PreferenceMenu(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="TRM in this process, got FakeRetriever"):
        PreferenceMenu(DeepRecEnv(world=world))
    with pytest.raises(ValueError, match="num_phrases"):
        PreferenceMenu(_base(), num_phrases=0)
    with pytest.raises(ValueError, match="recent"):
        PreferenceVector(_base(), recent=0)
    with pytest.raises(ValueError, match="own_weight"):
        PreferenceMenu(_base(), own_weight=-1.0)
    with pytest.raises(ValueError, match="trend_weight"):
        PreferenceMenu(_base(), trend_weight=-1.0)
    with pytest.raises(ValueError, match="num_components"):
        PreferenceVector(_base(), num_components=10_000)
    menu, vector = _menu(), _vector()
    with pytest.raises(gym.error.ResetNeeded):
        menu.step(0)
    menu.reset(seed=0)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"0\.\.12"):
        menu.step(13)
    with pytest.raises(ValueError, match="finite"):
        vector.step(np.full(9, np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="finite"):
        vector.step(np.zeros(3, dtype=np.float32))


def test_the_example_of_the_docs_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "wrappers.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert names["terminated"]
    assert names["info"]["outcome"]["well_formed"]
