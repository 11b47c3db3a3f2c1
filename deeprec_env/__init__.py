"""DeepRec as a Gymnasium text environment. Importing it registers the environments of envs.yaml."""

from deeprec_env.config import GameConfig
from deeprec_env.env import DeepRecEnv
from deeprec_env.episode import Episode, Turn
from deeprec_env.game import Game, StepResult
from deeprec_env.registration import register_envs
from deeprec_env.rewards.config import RewardConfig
from deeprec_env.spaces import TextSpace
from deeprec_env.vector_env import DeepRecVectorEnv
from deeprec_env.world import World, load_world
from deeprec_env.wrappers import PreferenceMenu, PreferenceVector, TranscriptObservation

__all__ = [
    "DeepRecEnv",
    "DeepRecVectorEnv",
    "Episode",
    "Game",
    "GameConfig",
    "PreferenceMenu",
    "PreferenceVector",
    "RewardConfig",
    "StepResult",
    "TextSpace",
    "TranscriptObservation",
    "Turn",
    "World",
    "load_world",
    "register_envs",
]

register_envs()
