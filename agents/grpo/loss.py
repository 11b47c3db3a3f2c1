"""The clipped policy-gradient loss and its parts. Pure tensors: no environment, no engine.

Shape legend: N sequences, T tokens (shifted: position t holds what is said of token t), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NORMALIZATIONS = ("token", "sequence", "constant")


@dataclass(frozen=True, slots=True)
class LossTerms:
    """One batch's loss. All but `loss` are detached; sums over the batch's tokens weighted as in the loss."""

    loss: Tensor
    policy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    ratio: Tensor


def token_weights(mask_NT: Tensor, normalization: str, *, constant: float = 1.0) -> Tensor:
    """Return float32 [N, T], 0 where mask_NT is False, by which per-token losses are summed to the batch's loss.

    Computed once for a whole batch; micro-batches take their rows, so that accumulation changes nothing.

    Args:
        mask_NT: bool [N, T].
        normalization: "token" gives every token the same weight (they sum to 1); "sequence" every sequence
            (GRPO); "constant" divides by N * constant, whatever the lengths (Dr.GRPO, arXiv:2503.20783).
        constant: tokens a sequence, for "constant".

    Raises:
        ValueError: if there is no such normalization.
    """
    mask = mask_NT.float()
    if normalization == "token":
        return mask / mask.sum().clamp(min=1.0)
    if normalization == "sequence":
        lengths_N1 = mask.sum(dim=1, keepdim=True)
        return mask / lengths_N1.clamp(min=1.0) / (lengths_N1 > 0).sum().clamp(min=1)
    if normalization == "constant":
        return mask / (mask.shape[0] * constant)
    raise ValueError(f"expected a normalization out of {', '.join(NORMALIZATIONS)}, got {normalization!r}")


def grpo_loss(
    logps_NT: Tensor,
    old_logps_NT: Tensor,
    advantages_NT: Tensor,
    weights_NT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    ref_logps_NT: Tensor | None = None,
    kl_coef: float = 0.0,
    correction_NT: Tensor | None = None,
) -> LossTerms:
    """Return the clipped surrogate with an asymmetric clip and, if asked for, a k3 KL to a reference.

    The loss is sum(weights * (kl_coef * k3 - correction * min(ratio * A, clipped ratio * A))).

    Args:
        logps_NT: float32 [N, T], with gradient.
        old_logps_NT: float32 [N, T], of the policy that sampled, by the trainer's arithmetic.
        advantages_NT: float32 [N, T].
        weights_NT: float32 [N, T] of `token_weights`; 0 on tokens that were not sampled.
        clip_low: how far a ratio may fall below 1.
        clip_high: how far it may rise above 1.
        ref_logps_NT: float32 [N, T] of the reference model; needed when kl_coef > 0.
        kl_coef: weight of the KL.
        correction_NT: float32 [N, T] of `engine_correction`; None means 1.

    Raises:
        ValueError: if kl_coef > 0 without ref_logps_NT.
    """
    sampled_NT = weights_NT > 0
    # Padding must not turn into inf * 0 = nan.
    ratio_NT = torch.exp(torch.where(sampled_NT, logps_NT - old_logps_NT, 0.0))
    clipped_NT = ratio_NT.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate_NT = torch.minimum(ratio_NT * advantages_NT, clipped_NT * advantages_NT)
    if correction_NT is not None:
        surrogate_NT = surrogate_NT * correction_NT
    policy = -(weights_NT * surrogate_NT).sum()
    kl = torch.zeros((), device=logps_NT.device)
    if ref_logps_NT is not None:
        kl = (weights_NT * torch.where(sampled_NT, k3_kl(logps_NT, ref_logps_NT), 0.0)).sum()
    elif kl_coef > 0:
        raise ValueError(f"expected ref_logps_NT with kl_coef {kl_coef}, got None; give a reference model")
    is_clipped_NT = ratio_NT * advantages_NT > clipped_NT * advantages_NT
    return LossTerms(
        loss=policy + kl_coef * kl,
        policy=policy.detach(),
        kl=kl.detach(),
        clip_fraction=(weights_NT * is_clipped_NT).sum().detach(),
        ratio=(weights_NT * ratio_NT).sum().detach(),
    )


def k3_kl(logps_NT: Tensor, ref_logps_NT: Tensor) -> Tensor:
    """Return k3, an estimate of KL(policy || reference) a token: exp(d) - d - 1, d = ref - policy; never negative."""
    difference_NT = ref_logps_NT - logps_NT
    return torch.exp(difference_NT) - difference_NT - 1.0


def engine_correction(trainer_logps_NT: Tensor, engine_logps_NT: Tensor, *, limit: float = 2.0) -> Tensor:
    """Return min(exp(trainer - engine), limit) a token: weights that correct an engine of other arithmetic."""
    return torch.exp(trainer_logps_NT - engine_logps_NT).clamp(max=limit).detach()


def token_logps(logits_NTV: Tensor, ids_NT: Tensor) -> Tensor:
    """Return float32 [N, T]: the log-probability of each id under its own position's logits."""
    return torch.log_softmax(logits_NTV.float(), dim=-1).gather(-1, ids_NT.unsqueeze(-1)).squeeze(-1)


def entropy(logits_NTV: Tensor) -> Tensor:
    """Return float32 [N, T]: the entropy in nats of the distributions."""
    logps_NTV = torch.log_softmax(logits_NTV.float(), dim=-1)
    return -(logps_NTV.exp() * logps_NTV).sum(dim=-1)


def logps_and_entropy(logits_MV: Tensor, ids_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return `token_logps` and, without gradient, `entropy` of one softmax over the vocabulary, float32 [M] each."""
    logps_MV = torch.log_softmax(logits_MV.float(), dim=-1)
    known_MV = logps_MV.detach()
    # A token that is impossible has logp -inf and takes no part: 0 * -inf would be nan.
    entropy_M = torch.special.entr(known_MV.exp()).sum(dim=-1)
    return logps_MV.gather(-1, ids_M.unsqueeze(-1)).squeeze(-1), entropy_M
