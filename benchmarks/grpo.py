"""One update of the policy: this project's learner against TRL's GRPOTrainer, on the same rollouts.

    pip install -c constraints.txt trl
    python -m benchmarks.grpo                       a micro Llama like the quickstart's
    python -m benchmarks.grpo --model smollm2-135m  a model of SmolLM2-135M's shape, random weights

Both get the same weights, groups of rollouts, rewards, clip and AdamW, and the same loss: advantage = reward minus the
group's mean, every sampled token weighted alike (TRL's loss_type dapo). Updates alternate in one process. Dialogues
have the shape of the quickstart's (a prompt that a group shares, 1 to 3 searches, a ranking); their tokens are random.

TRL's part of a step begins where its rollout function returns: padding, rewards, advantages, forward, backward, AdamW.
Ours begins with the same rollouts: `Learner.learn`. TRL is measured with several sizes of its micro-batches, and its
best counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)

from agents.grpo.backend import OptimizerConfig, TorchBackend
from agents.grpo.config import BackendConfig, GrpoConfig
from agents.grpo.types import Rollout, RolloutGroup, TokenTrace
from agents.grpo.update import Learner

LEARNING_RATE = 1e-6
LOSS_TYPES = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo"}
"""Our normalizations as TRL calls them."""
_MAX_TOKENS = 4096
ADAMW = OptimizerConfig(weight_decay=0.0, max_grad_norm=1.0, betas=(0.9, 0.99))
_LIKE_OURS: dict[str, Any] = {
    **{"scale_rewards": "none", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "temperature": 1.0},
    **{"learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "adam_beta2": ADAMW.betas[1]},
    **{"max_completion_length": _MAX_TOKENS},
}
"""TRL's options for the same update."""
_TRL_IN_FLOAT32: dict[str, Any] = {
    **{"bf16": False, "gradient_checkpointing": False},
    **{"report_to": "none", "save_strategy": "no", "logging_steps": 10**6, "disable_tqdm": True},
}
"""TRL without what would cost it time here: its defaults are bfloat16 and gradient checkpointing."""
SIZES: dict[str, dict[str, Any]] = {
    "micro": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "smollm2-135m": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "vocab_size": 49152},
    },
}


def build_model(size: str, *, seed: int = 0) -> LlamaForCausalLM:
    """Return a fresh float32 model; the same seed gives the same weights."""
    options = {"vocab_size": 4096, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(**{**options, "tie_word_embeddings": True, "eos_token_id": 1, **SIZES[size]})
        )


def draw_groups(*, num_groups: int, group_size: int, vocab_size: int, seed: int) -> list[RolloutGroup]:
    """Return groups of rollouts of 2 to 4 turns: a prompt, searches, what they find, a ranking; 190 tokens each."""
    rng = np.random.default_rng(seed)
    groups = []
    for user in range(num_groups):
        prompt = tuple(rng.integers(2, vocab_size, int(rng.integers(43, 71))).tolist())
        rollouts = [_draw_rollout(rng, prompt, vocab_size=vocab_size) for _ in range(group_size)]
        groups.append(RolloutGroup(user, tuple(rollouts)))
    return groups


def _draw_rollout(rng: np.random.Generator, prompt: tuple[int, ...], *, vocab_size: int) -> Rollout:
    trace = TokenTrace(prompt)
    for _ in range(int(rng.integers(1, 4))):
        turn = rng.integers(2, vocab_size, int(rng.integers(6, 14))).tolist()
        trace.append_turn(turn, [0.0] * len(turn))
        trace.append_observation(rng.integers(2, vocab_size, int(rng.integers(43, 48))).tolist())
    ranking = rng.integers(2, vocab_size, int(rng.integers(25, 31))).tolist()
    trace.append_turn(ranking, [0.0] * len(ranking))
    return Rollout(trace, tuple(rng.normal(size=trace.num_turns).tolist()))


@dataclass
class Times:
    """Seconds of each update."""

    whole: list[float] = field(default_factory=list)
    """From rollouts to new weights."""
    passes: list[float] = field(default_factory=list)
    """Forward, backward and AdamW alone."""


class Ours:
    """This project's learner."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[RolloutGroup],
        *,
        micro_batch_tokens: int = 8192,
        normalization: str = "token",
    ) -> None:
        """Take the model over."""
        self._groups, self.times = groups, Times()
        self.backend = TorchBackend(model, BackendConfig(), ADAMW)
        config = GrpoConfig(
            **{"users_per_step": len(groups), "advantage": "group_mean", "normalization": normalization},
            **{"max_tokens": _MAX_TOKENS, "micro_batch_tokens": micro_batch_tokens},
            # The traces' log-probabilities are made up, so they are neither checked nor used.
            **{"correction_limit": 0.0, "max_logp_difference": 0.0},
        )
        self._learner = Learner(self.backend, config, pad_id=0)

    def update(self) -> None:
        """Take one step and note its time."""
        started = time.perf_counter()
        self._learner.learn([self._groups], learning_rate=LEARNING_RATE)
        self.times.whole.append(time.perf_counter() - started)

    def find_gradient(self) -> Tensor:
        """Return the gradient of all weights in one row; nothing is changed."""
        found: list[Tensor] = []

        def step(learning_rate: float) -> float:
            found.append(_flat_gradient(self.backend.model))
            return float(found[0].norm())

        self.backend.step = step  # type: ignore[method-assign]
        self._learner.learn([self._groups], learning_rate=0.0)
        return found[0]


def _flat_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat(
        [parameter.grad.flatten().clone() for parameter in model.parameters() if parameter.grad is not None]
    )


def run_trl(
    model: PreTrainedModel,
    groups: Sequence[RolloutGroup],
    *,
    num_updates: int,
    batch_size: int,
    between: Callable[[], None] | None = None,
    normalization: str = "token",
    max_grad_norm: float = ADAMW.max_grad_norm,
) -> tuple[Times, Tensor]:
    """Return the times of TRL's updates on these groups and the gradient of the first, in one row.

    Args:
        model: changed in place.
        groups: of one size each; every update gets the same.
        num_updates: how many.
        batch_size: rollouts of one forward and backward pass.
        between: is called after each update, outside of the clock.
        normalization: of the loss, as we call it.
        max_grad_norm: the gradient is clipped to it; 0 leaves it as it is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which versions of vLLM it knows, which of its options are new
        options = {"loss_type": LOSS_TYPES[normalization], "max_grad_norm": max_grad_norm}
        return _run_trl(model, groups, num_updates, batch_size, between, options)


def _run_trl(
    model: PreTrainedModel,
    groups: Sequence[RolloutGroup],
    num_updates: int,
    batch_size: int,
    between: Callable[[], None] | None,
    options: dict[str, Any],
) -> tuple[Times, Tensor]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    options = {**options, "use_cpu": not torch.cuda.is_available()}
    times, gradients, clock = Times(), [], {"rollouts": 0.0, "inputs": 0.0}
    rollouts = [rollout for group in groups for rollout in group.rollouts]

    class Timed(GRPOTrainer):  # type: ignore[misc, valid-type]
        def _prepare_inputs(self, batch: Any) -> Any:
            inputs = super()._prepare_inputs(batch)
            if clock["inputs"] < clock["rollouts"]:  # the first micro-batch of the update
                clock["inputs"] = time.perf_counter()
            return inputs

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **options: Any) -> None:
            if not gradients:
                gradients.append(_flat_gradient(model))

        def on_step_end(self, *args: Any, **options: Any) -> None:
            now = time.perf_counter()
            times.whole.append(now - clock["rollouts"])
            times.passes.append(now - clock["inputs"])
            if between is not None:
                between()

    def replay(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        found = _as_trl_takes_them(rollouts)
        clock["rollouts"] = time.perf_counter()
        return found

    def reward(completions: list[Any], **options: Any) -> list[float]:
        return [rollout.reward for rollout in rollouts]

    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            **{"max_steps": num_updates, "num_generations": len(groups[0].rollouts)},
            **{"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": len(rollouts) // batch_size},
        }
        trainer = Timed(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(output_dir=folder, **sizes, **_LIKE_OURS, **_TRL_IN_FLOAT32, **options),
            train_dataset=Dataset.from_list([{"prompt": f"t{2 + number}"} for number in range(len(groups))]),
            processing_class=_tokenizer(int(model.config.vocab_size)),
            rollout_func=replay,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return times, gradients[0]


def _as_trl_takes_them(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    return {
        "prompt_ids": [list(rollout.trace.prompt_ids) for rollout in rollouts],
        "completion_ids": [list(rollout.trace.ids) for rollout in rollouts],
        "logprobs": [list(rollout.trace.logps) for rollout in rollouts],
        "env_mask": [[int(sampled) for sampled in rollout.trace.loss_mask] for rollout in rollouts],
    }


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"t{number}": number for number in range(vocab_size)}, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="t0", eos_token="t1", unk_token="t2")


def compare_gradients(
    size: str, groups: Sequence[RolloutGroup], *, normalization: str = "token"
) -> tuple[float, float]:
    """Return cosine and ratio of norms of both gradients of the same weights and rollouts."""
    num_rollouts = sum(len(group.rollouts) for group in groups)
    ours = Ours(build_model(size), groups, normalization=normalization).find_gradient().double()
    options: dict[str, Any] = {"normalization": normalization, "max_grad_norm": 0.0}
    _, found = run_trl(build_model(size), groups, num_updates=1, batch_size=num_rollouts, **options)
    theirs = found.double()
    return float(torch.cosine_similarity(ours, theirs, dim=0)), float(ours.norm() / theirs.norm())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro", choices=tuple(SIZES))
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--updates", type=int, default=12, help="of each contestant and size of TRL's micro-batch")
    parser.add_argument("--batch-sizes", default="8,16,48", help="rollouts of TRL's micro-batches")
    parser.add_argument("--micro-batch-tokens", type=int, default=GrpoConfig().micro_batch_tokens, help="of ours")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocab_size = int(build_model(options.model).config.vocab_size)
    groups = draw_groups(num_groups=options.groups, group_size=options.group_size, vocab_size=vocab_size, seed=0)
    traces = [rollout.trace for group in groups for rollout in group.rollouts]
    num_tokens, num_sampled = sum(map(len, traces)), sum(sum(trace.loss_mask) for trace in traces)
    write = sys.stdout.write
    write(f"{options.model}: {len(traces)} rollouts, {num_tokens} tokens, {num_sampled} of them sampled\n")
    cosine, norms = compare_gradients(options.model, groups)
    write(f"gradients: cosine {cosine:.6f}, ratio of norms {norms:.4f}\n\n")
    write(
        "| TRL's micro-batch | TRL, s: best, median | of it forward, backward, AdamW | ours, s: best, median "
        "| ours / TRL: best, median | tokens/s: TRL, ours |\n|---|---|---|---|---|---|\n"
    )
    for batch_size in map(int, options.batch_sizes.split(",")):
        ours = Ours(build_model(options.model), groups, micro_batch_tokens=options.micro_batch_tokens)
        times, _ = run_trl(
            *(build_model(options.model), groups),
            num_updates=options.updates,
            batch_size=batch_size,
            between=ours.update,
        )
        write(_row(batch_size, times, ours.times, num_tokens=num_tokens) + "\n")
        sys.stdout.flush()


def _row(batch_size: int, theirs: Times, ours: Times, *, num_tokens: int) -> str:
    """Return one line of the table; each contestant's first update, which warms up, is left out."""
    pair = [times.whole[1:] for times in (theirs, ours)]
    best, median = [min(seconds) for seconds in pair], [statistics.median(seconds) for seconds in pair]
    cells = [
        f"{batch_size} rollouts",
        *(f"{low:.3f}, {middle:.3f}" for low, middle in zip(best, median, strict=True)),
        f"{best[1] / best[0]:.2f}, {median[1] / median[0]:.2f}",
        f"{num_tokens / median[0]:.0f}, {num_tokens / median[1]:.0f}",
    ]
    passes = theirs.passes[1:]
    cells.insert(2, f"{min(passes):.3f}, {statistics.median(passes):.3f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
