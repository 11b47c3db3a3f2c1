"""An episode comes back from its text, turn by turn, with the same rewards."""

import pytest

from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.rendering import render_transcript
from deeprec_env.transcripts import NotThisEpisode, Replayer, read_transcript
from deeprec_env.world import World


def _played(game: Game, *last: str) -> Episode:
    episode = game.start(2, "test")
    for wish in ("noir", "comedy; 1990s"):
        game.step([episode], [render_search(wish, reasoning="Let me look.")])
    titles = list(dict.fromkeys(game.world.display(i).title for i in episode.pool))[:10]
    for action in last or (render_recommend(titles, reasoning="I rank."),):
        game.step([episode], [action])
    return episode


@pytest.mark.parametrize("show_attributes", [False, True])
@pytest.mark.parametrize("form", ["response", "transcript", "printed", "coloured"])
def test_a_text_is_played_again(world: World, form: str, show_attributes: bool) -> None:
    config = GameConfig(stage="cold", show_attributes=show_attributes)
    episode = _played(Game(world, config))
    text = {
        "response": episode.response,
        "transcript": episode.transcript,
        "printed": render_transcript(episode) + "\n--- the target was: X\n",
        "coloured": render_transcript(episode, colored=True),
    }[form]
    found = read_transcript(text)
    if form in ("printed", "coloured"):
        assert (found.user_id, found.split) == ("u2", "test")
    replayer = Replayer(world, config)
    again = replayer.replay(2, "test", replayer.turns_of(found.response))
    assert again.reward == episode.reward > 0
    assert [turn.reward_terms for turn in again.turns] == [turn.reward_terms for turn in episode.turns]
    assert again.outcome == episode.outcome
    assert again.pool == episode.pool


def test_texts_do_not_command_the_terminal(world: World) -> None:
    episode = _played(Game(world, GameConfig()), "a\x1b[2J\x07\x9b\r\tb")
    drawn = render_transcript(episode, colored=True)
    assert "a␛[2J␇␛␍\tb" in drawn
    assert "\x1b[2J" in render_transcript(episode), "files keep what was written"


def test_malformed_and_unfinished_texts(world: World) -> None:
    game = Game(world, GameConfig())
    malformed = _played(game, "<think> again")
    replayer = Replayer(world, GameConfig())
    again = replayer.replay(2, "test", replayer.turns_of(read_transcript(malformed.transcript).response))
    assert (again.reward, again.turns[-1].malformed_reason) == (-1.0, malformed.turns[-1].malformed_reason)
    searching = game.start(2, "test")
    game.step([searching], [render_search("noir")])
    assert not replayer.replay(2, "test", replayer.turns_of(searching.response)).ended


def test_titles_of_another_world_are_refused(world: World) -> None:
    text = render_search("noir") + "\n\n<|begin_of_item_list|>\n1. Nowhere\n<|end_of_item_list|>\n\n"
    with pytest.raises(NotThisEpisode, match="name the data set"):
        Replayer(world, GameConfig()).turns_of(text)
