"""Each hole of the preset `paper` is closed in `strict`, and the terms are what they say."""

import pytest

from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.world import World

WISHES = ("noir", "comedy", "western")


def _play(world: World, actions: list[str], *, stage: str, reward: object = "strict", user: int = 0) -> Episode:
    game = Game(world, GameConfig(stage=stage, reward=reward))
    episode = game.start(user, "test")
    for action in actions:
        game.step([episode], [action])
    assert episode.ended
    return episode


def _ranking(titles: list[str]) -> str:
    return render_recommend(titles, reasoning="I rank what I have seen.")


def _pool_titles(world: World, wishes: tuple[str, ...], user: int = 0) -> list[str]:
    game = Game(world)
    episode = game.start(user, "test")
    for wish in wishes:
        game.step([episode], [render_search(wish)])
    ids = [i for i in episode.pool if i != episode.target]
    return list(dict.fromkeys(world.display(i).title for i in ids if "Twins" not in world.display(i).title))


def _honest(world: World, wishes: tuple[str, ...] = WISHES, **kwargs: object) -> Episode:
    titles = _pool_titles(world, wishes)[:10]
    return _play(world, [*map(render_search, wishes), _ranking(titles)], **kwargs)  # type: ignore[arg-type]


def _target_title(world: World, user: int = 0) -> str:
    return world.display(Game(world).start(user, "test").target).title


def test_same_title_ten_times(world: World) -> None:
    target = _target_title(world)
    search = render_search(target)
    paper = _play(world, [search, _ranking([target] * 10)], stage="rec", reward="paper")
    strict = _play(world, [search, _ranking([target] * 10)], stage="rec")
    others = [title for title in _pool_titles(world, (target,)) if title != target][:9]
    honest = _play(world, [search, _ranking([target, *others])], stage="rec")
    assert paper.reward > 12
    assert strict.reward < honest.reward < 4
    assert strict.outcome is not None
    assert len(strict.outcome.duplicate_titles) == 9


def test_a_sequel_is_no_hit(world: World) -> None:
    game = Game(world, GameConfig(stage="rec"))
    episode = game.start(0, "test")
    episode.target = 1  # "Iron Engine"
    game.step([episode], [render_search("comedy")])
    others = _pool_titles(world, ("comedy",))
    titles = ["Iron Engine 2", *(t for t in others if "Iron" not in t)][:10]
    game.step([episode], [_ranking(titles)])
    assert episode.outcome is not None
    assert episode.outcome.hit_rank == 0
    assert episode.paid["outcome"] == 0.0


def test_a_shared_title_means_both_items(world: World) -> None:
    game = Game(world, GameConfig(stage="rec"))
    episode = game.start(0, "test")
    episode.target = 13  # the second "Twins"
    game.step([episode], [render_search("comedy")])
    titles = ["twins ", *(t for t in _pool_titles(world, ("comedy",)) if t != "Twins")][:10]
    game.step([episode], [_ranking(titles)])
    assert episode.outcome is not None
    assert episode.outcome.hit_rank == 1
    assert episode.paid["outcome"] == pytest.approx(3.0)


def test_malformed_text_with_many_calls_earns_no_more_than_silence(world: World) -> None:
    searches = [render_search(wish) for wish in WISHES]
    noisy = _play(world, [*searches, "no list"], stage="cold")
    silent = _play(world, ["no list"], stage="cold")
    assert noisy.reward == silent.reward == -1.0
    assert _play(world, [*searches, "no list"], stage="cold", reward="paper").reward > -1.0


def test_invented_titles_earn_nothing(world: World) -> None:
    invented = [f"Nowhere {i}" for i in range(10)]
    for stage in ("cold", "rec"):
        episode = _play(world, [*map(render_search, WISHES), _ranking(invented)], stage=stage)
        assert episode.reward == 0.0
    half = _pool_titles(world, WISHES)[:5] + invented[:5]
    process = _honest(world, stage="cold").reward
    assert _play(world, [*map(render_search, WISHES), _ranking(half)], stage="cold").reward == pytest.approx(
        process / 2
    )


def test_titles_never_retrieved_earn_no_similarity(world: World) -> None:
    seen = set(_pool_titles(world, ("noir",)))
    unseen = [world.display(i).title for i in range(1, 61) if world.display(i).title not in seen]
    target = _target_title(world)
    unseen = [title for title in unseen if title != target][:10]
    episode = _play(world, [render_search("noir"), _ranking(unseen)], stage="rec")
    assert episode.reward == 0.0
    assert episode.outcome is not None
    assert len(episode.outcome.never_retrieved_titles) == 10


@pytest.mark.parametrize(
    "wishes",
    [
        ("noir", "noir", "noir"),
        ("noir", " NOIR ", "noir!"),
        ("dark noir", "noir dark", "noir, dark; dark"),
        ("noir", "noir", "ｎｏｉｒ"),
        ("noir", "n\u200boir", "no\u00adir"),
        ("noir", "nóir", "n\u0301o\u0301i\u0301r\u0301"),
        ("noir", "", "…"),
        ("a b c d e f g h i j k", "a b c d e f g h i j k k", "a b c d e f g h i j k a"),
    ],
)
def test_repeated_preferences_earn_nothing(world: World, wishes: tuple[str, ...]) -> None:
    episode = _honest(world, wishes, stage="cold")
    assert episode.well_formed
    assert episode.reward == 0.0


def test_a_search_without_a_new_candidate_earns_nothing(world: World) -> None:
    world.retriever.retrieve = lambda queries: [type("C", (), {"item_ids": tuple(range(1, 21))}) for _ in queries]  # type: ignore[method-assign]
    game = Game(world, GameConfig(stage="cold", exclude_history=False))
    episode = game.start(0, "test")
    results = [game.step([episode], [render_search(wish)])[0] for wish in WISHES]
    assert [result.reward for result in results] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("num_new", "paid"), [(0, 0.0), (2, 0.0), (3, 0.5)])
def test_a_search_must_find_15_percent_new(world: World, num_new: int, paid: float) -> None:
    answers = iter([tuple(range(1, 21)), tuple(range(1 + num_new, 21 + num_new))])
    world.retriever.retrieve = lambda queries: [type("C", (), {"item_ids": next(answers)})]  # type: ignore[method-assign]
    game = Game(world, GameConfig(stage="cold", exclude_history=False))
    episode = game.start(0, "test")
    for wish in ("noir", "comedy"):
        (result,) = game.step([episode], [render_search(wish)])
    assert result.info["reward_terms"]["invocation"] == paid


def test_process_terms_are_paid_where_they_are_earned(world: World) -> None:
    episode = _honest(world, stage="cold")
    invocation = [turn.reward_terms["invocation"] for turn in episode.turns]
    assert invocation == [0.0, 0.5, 0.5, 0.0]
    diversity = [turn.reward_terms["diversity"] for turn in episode.turns]
    assert diversity[0] == diversity[3] == 0.0
    assert 0 < sum(diversity) <= 0.1 + 1e-9
    assert episode.reward == pytest.approx(1.0 + sum(diversity))


def test_a_hit_outweighs_every_list_without_one(world: World) -> None:
    target = _target_title(world)
    others = [title for title in _pool_titles(world, (target,)) if title != target]
    search = render_search(target)
    last = _play(world, [search, _ranking([*others[:9], target])], stage="rec")
    none = _play(world, [search, _ranking(others[:10])], stage="rec")
    assert last.paid["outcome"] == pytest.approx(1.2)
    assert none.reward <= 1.0 < last.paid["outcome"]


def test_outcome_falls_by_a_fifth_a_place(world: World) -> None:
    target = _target_title(world)
    others = [title for title in _pool_titles(world, (target,)) if title != target]
    for place in (0, 3, 9):
        titles = [*others[:place], target, *others[place:9]]
        episode = _play(world, [render_search(target), _ranking(titles)], stage="rec")
        assert episode.paid["outcome"] == pytest.approx(1 + 0.2 * (10 - place))
        assert episode.outcome is not None
        assert episode.outcome.hit_rank == place + 1


def test_progress_telescopes_to_nothing(world: World) -> None:
    config = {"preset": "strict", "progress_weight": 2.0}
    target = _target_title(world)
    for actions in (
        [render_search(target), "junk"],
        [render_search("noir"), render_search(target), _ranking(["x"] * 10)],
    ):
        episode = _play(world, actions, stage="rec", reward=config)
        terms = [turn.reward_terms["progress"] for turn in episode.turns]
        assert max(terms) > 0
        assert sum(terms) == 0.0
        assert episode.reward == _play(world, actions, stage="rec").reward
