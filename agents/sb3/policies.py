"""Policies for the menu that never choose what makes no sense: `allowed`, which the view observes, masks their actions.

Shapes: N observations, A actions.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.dqn.policies import MultiInputPolicy, QNetwork
from torch import Tensor

_NEVER = -1e9
"""The logit of a masked action: its probability is 0, and no gradient reaches it."""


class MaskedActorCritic(MultiInputActorCriticPolicy):
    """The actor-critic of PPO over a masked Discrete space, with one features extractor for both."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values and log-probabilities."""
        distribution, values = self._parts(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, log-probabilities of the actions, and entropies."""
        distribution, values = self._parts(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any) -> CategoricalDistribution:
        """Return the distribution over the actions that make sense."""
        return self._parts(obs)[0]

    def _parts(self, obs: Any) -> tuple[CategoricalDistribution, Tensor]:
        latent_policy, latent_value = self.mlp_extractor(self.extract_features(obs))
        logits_NA = _masked(self.action_net(latent_policy), obs["allowed"])
        assert isinstance(self.action_dist, CategoricalDistribution)
        return self.action_dist.proba_distribution(action_logits=logits_NA), self.value_net(latent_value)


class MaskedQNetwork(QNetwork):
    """Action values, of which the greatest is looked for among the actions that make sense."""

    def _predict(self, observation: Any, deterministic: bool = True) -> Tensor:
        return _masked(self(observation), observation["allowed"]).argmax(dim=1).reshape(-1)


class MaskedDQNPolicy(MultiInputPolicy):
    """The policy of DQN over a masked Discrete space. What it explores at random is not masked."""

    def make_q_net(self) -> QNetwork:
        """Return a fresh network."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQNetwork(**arguments).to(self.device)


def _masked(scores_NA: Tensor, allowed_NA: Tensor) -> Tensor:
    return scores_NA.masked_fill(allowed_NA < 0.5, _NEVER)
