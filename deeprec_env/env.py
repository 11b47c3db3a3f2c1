"""One user at a time as a `gymnasium.Env`: a thin shell over `Game`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from deeprec_env.config import SPLITS, GameConfig, build_game_config
from deeprec_env.episode import Episode
from deeprec_env.errors import unknown_name
from deeprec_env.game import Game
from deeprec_env.infos import reset_infos
from deeprec_env.rendering import render_opening, render_transcript, render_turn
from deeprec_env.spaces import TextSpace
from deeprec_env.users import UserOrder, chosen_user, select_users
from deeprec_env.world import World, load_world

RENDER_MODES = ("ansi", "human")
ARGUMENTS = ("dataset", "split", "users", "category", "data_home", "auto_prepare", "world", "retriever", "render_mode")
"""What an environment takes beside the fields of GameConfig."""


def build_game(
    dataset: str | None,
    options: Mapping[str, Any],
    *,
    category: str | None = None,
    data_home: str | Path | None = None,
    auto_prepare: bool = True,
    world: World | None = None,
    retriever: str | None = None,
) -> Game:
    """Return the game over a data set's world, or over the given one.

    Raises:
        ValueError: if an option is unknown or wrong, or there is neither data set nor world.
        DatasetNotPrepared: if the data set is not at hand.
    """
    config: GameConfig = build_game_config(options, others=ARGUMENTS)
    if world is None:
        if dataset is None:
            raise ValueError("expected a dataset or a world, got neither; pass e.g. dataset='sample'")
        world = load_world(
            dataset, category=category, data_home=data_home, auto_prepare=auto_prepare, retriever=retriever
        )
    return Game(world, config)


def build_action_space(world: World) -> TextSpace:
    """Return a space that samples the world's commonest attributes and some of its titles."""
    counts = [(count, value) for values in world.catalog.attribute_values.values() for value, count in values.items()]
    phrases = [value for _, value in sorted(counts, key=lambda entry: (-entry[0], entry[1]))[:32]]
    titles = [world.display(item_id).title for item_id in range(1, min(world.catalog.num_items, 200) + 1)]
    return TextSpace(phrases=phrases, titles=titles)


class DeepRecEnv(gym.Env[str, str]):
    r"""A language model explores the item space of a recommender.

    ## Description
    The agent reads what a person has chosen so far. Turn by turn it reasons, writes a *preference* in words, and reads
    the items that a preference-aware sequential recommender returns for history and preference; at last it ranks the
    items that it has seen. One item, the person's next choice, is held out: the better its place, the higher the
    reward. The game is that of DeepRec (arXiv:2505.16810).

    ## Observation Space
    `TextSpace()`: any string. `reset` returns the prompt, which ends in an opened thinking block; `step` returns the
    *new* text only: the numbered list of retrieved items after a search, the empty string at the end.

    ## Action Space
    `TextSpace()`: any string, the text of one turn. It is a *search* if it ends in one preference between
    `<|begin_of_preference|>` and `<|end_of_preference|>`; a *recommendation* if it closes the thinking block and ends
    in one `<recommendation_list>` of exactly `top_k` numbered titles; anything else is *malformed*.

    ## Rewards
    Every reward is a sum of named terms (`info["reward_terms"]`). Preset `strict`, the default: in stage `rec`
    *outcome* (1 + 0.2 (10 - place) for the target, places from 0), *similarity* (at most 1: how like the target the
    ranked items are) and *format* (-1 for an episode that does not end well-formed); in stage `cold` *invocation* (0.5
    for the second and the third different search that finds something new), *diversity* (at most 0.1: how far apart the
    preferences lie) and *format*, where the first two are worth the share of the final ranking that was retrieved. No
    episode is worth more than 4 in `rec` and 1.1 in `cold`, or less than -1. Preset `paper`: the published rules.

    ## Starting State
    A user, drawn without replacement until all have been seen, or named by `options={"user_index": 3}` or
    `options={"user_id": "196"}`.

    ## Episode End
    Terminated by a recommendation or a malformed action; truncated by a search beyond `max_turns` or by more text than
    `max_action_chars` or `max_episode_chars`.

    ## Information
    `info` holds `turn`, `action_kind`, `malformed_reason`, `preference`, `candidate_ids`, `reward_terms`, and under
    `oracle` what an agent must not see: `target_id`, `target_rank` (1-based place in this retrieval, 0 = absent) and
    `target_in_pool`. At the end `outcome`: recommended ids, hit rank, Recall and NDCG, and the titles that are unknown,
    duplicate or were never retrieved. After `reset` it also holds `user_index` and `user_id`.

    ## Arguments
    `stage` ("rec" or "cold"), `split` ("train", "valid" or "test"), `users` ("all", "top0_100" by the recommender's
    rank of the target, or indices), `reward` ("strict", "paper" or `{"preset": "strict", "progress_weight": 0.5}`),
    `k`, `top_k`, `max_turns`, `max_history`, `prompt_style` ("full" or "compact"), `show_attributes`,
    `exclude_history`, `category` (of the Amazon reviews), `data_home`, `auto_prepare`, `retriever` (a service's address
    or a recording), `render_mode` ("ansi" or "human").

    ```python
    import gymnasium as gym, deeprec_env

    env = gym.make("DeepRec-Sample-v0", stage="rec", split="test")
    prompt, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(
        "They like noir. <|begin_of_preference|> moody crime thrillers; 1990s <|end_of_preference|>"
    )
    ```

    ## Version History
    * v0: the first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        dataset: str | None = None,
        *,
        split: str = "train",
        users: str | Sequence[int] = "all",
        category: str | None = None,
        data_home: str | Path | None = None,
        auto_prepare: bool = True,
        world: World | None = None,
        retriever: str | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        """Load the world (shared within the process) and fix the rules.

        Args:
            dataset: "sample", "ml-100k", "ml-1m" or "amazon".
            split: whose item is held out: "train" (third last), "valid" (second last) or "test" (last).
            users: "all", "topA_B" by the recommender's rank of the target, or user indices.
            category: of the Amazon reviews.
            data_home: where prepared data lie.
            auto_prepare: whether a data set that is not prepared yet is prepared now.
            world: to be played instead of a data set.
            retriever: where candidates come from, see `load_world`; by default the recommender in this process.
            render_mode: "ansi", "human" or None.
            **options: fields of GameConfig.

        Raises:
            ValueError: if an argument is unknown or wrong.
            DatasetNotPrepared: if the data set is not at hand.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise unknown_name("render_mode", render_mode, RENDER_MODES)
        self.game = build_game(
            dataset,
            options,
            category=category,
            data_home=data_home,
            auto_prepare=auto_prepare,
            world=world,
            retriever=retriever,
        )
        self.split = split
        self.render_mode = render_mode
        self.observation_space = TextSpace()
        self.action_space = build_action_space(self.game.world)
        self._order = UserOrder(select_users(self.game.world, users, split))
        self._episode: Episode | None = None

    @property
    def episode(self) -> Episode | None:
        """The episode in play; None before the first reset. Holds the target: not for policies."""
        return self._episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode and return the prompt.

        Args:
            seed: of the choice of users; the same seed gives the same episodes.
            options: `{"user_id": …}` or `{"user_index": …}` choose the user.

        Raises:
            ValueError: if an option is unknown, or there is no such user.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._order.restart()
        user = chosen_user(self.game.world, options)
        if user is None:
            user = self._order.draw(self.np_random)
        self._episode = self.game.start(user, self.split)
        if self.render_mode == "human":
            sys.stdout.write(render_opening(self._episode, colored=True) + "\n")
        (info,) = reset_infos([self._episode])
        return self._episode.prompt, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn.

        Raises:
            TypeError: if the action is not a string.
            EpisodeEnded: if the episode has ended.
            ResetNeeded: if there is none yet.
        """
        if self._episode is None:
            raise gym.error.ResetNeeded("expected an episode in play, got none; call reset first")
        (result,) = self.game.step([self._episode], [action])
        if self.render_mode == "human":
            sys.stdout.write(render_turn(self._episode, len(self._episode.turns) - 1, colored=True) + "\n")
        return result.observation, result.reward, result.terminated, result.truncated, result.info

    def render(self) -> str | None:
        """Return the transcript in mode "ansi". Mode "human" writes as it goes, and returns None."""
        if self.render_mode != "ansi":
            return None
        return "" if self._episode is None else render_transcript(self._episode)
