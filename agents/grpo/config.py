"""What a training run is started with. The string under a field is its help on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml

from agents.base import AgentError
from agents.grpo.advantage import ADVANTAGES
from agents.grpo.loss import NORMALIZATIONS
from agents.grpo.policy import PolicyConfig

ConfigT = TypeVar("ConfigT")
STAGES = ("sft", "cold", "rec")
PRESET_FOLDER = Path(__file__).resolve().parent.parent / "presets"


@dataclass(frozen=True)
class GameOptions:
    """How the game looks to the policy, in training and in evaluation."""

    prompt_style: str = "compact"
    """full, or compact for micro models."""
    max_history: int = 10
    """Items of the history in the prompt."""
    reward: str = "strict"
    """The reward's preset."""


@dataclass(frozen=True)
class BackendConfig:
    """What holds the weights and takes the optimizer's steps, for all stages of a run. None of it is part of what a
    checkpoint is checked against, but for the adapters: a run may go on under another backend."""

    name: str = "torch"
    """torch, or deepspeed (the optimizer's state split over the processes)."""
    zero_stage: int = 2
    """Of DeepSpeed: 1 splits the optimizer's state, 2 the gradients too, 3 the weights too."""
    offload: str = "none"
    """Of DeepSpeed: none, optimizer (its state lives in main memory), or all (the weights too; wants zero_stage 3)."""
    precision: str = "fp32"
    """fp32, or bf16 for the arithmetic of forward and backward; the optimizer's weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    attention: str = "auto"
    """auto (flash-attn where a GPU and the package are there and precision is bf16, else torch's sdpa; sequences lie in
    one row without padding), or an implementation of transformers by name: sdpa (padded), eager, flash_attention_2."""
    lora_rank: int = 0
    """Train low-rank adapters (peft) of this rank in place of the weights; 0 trains the weights."""
    lora_alpha: float = 32.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_layers: int = 0
    """Adapters in the last so many layers only; the backward pass ends there. 0 takes all layers."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ValueError: if a name is unknown or a value out of its range.
        """
        choices = {
            "name": ("torch", "deepspeed"),
            "offload": ("none", "optimizer", "all"),
            "precision": ("fp32", "bf16"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}{_hint(value, known)}")
        if self.zero_stage not in (1, 2, 3):
            raise ValueError(f"expected zero_stage to be 1, 2 or 3, got {self.zero_stage}")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"expected zero_stage 3 for offload all, got {self.zero_stage}; stages 1 and 2 keep weights"
            )
        if self.lora_rank < 0 or self.lora_layers < 0:
            raise ValueError(f"expected lora_rank and lora_layers >= 0, got {self.lora_rank} and {self.lora_layers}")


@dataclass(frozen=True)
class ServerConfig:
    """A vLLM server that the engine vllm-server samples from; see docs/training.md for how it is started."""

    url: str = ""
    """Its address, such as http://HOST:8000."""
    weights: str = ""
    """A folder of this run's own that the server's machine sees too; new weights pass through it. Empty takes
    OUT/server_weights."""
    weights_there: str = ""
    """The same folder's path on the server's machine, if it is another one there."""
    timeout_s: float = 1800.0
    """For the whole answer to one turn, and for taking new weights."""

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: if timeout_s is not above 0.
        """
        if self.timeout_s <= 0:
            raise ValueError(f"expected timeout_s > 0, got {self.timeout_s:g}")


@dataclass(frozen=True)
class SftConfig:
    """Imitation of an agent's episodes, on the policy's own tokens."""

    num_samples: int = 3
    """Dialogues a user."""
    keep_best: int = 0
    """Of a user's num_samples dialogues imitate so many with the highest reward, which is best-of-n; 0 imitates all.
    Malformed ones are never imitated."""
    min_reward: float = -math.inf
    """Dialogues that earned less in stage rec are left out."""
    teacher: str = "heuristic?num_searches=1-3&empty_weight=12"
    """The imitated agent, as `deeprec` names agents; llm:FOLDER imitates a policy's own successes. A range of searches
    leaves stage cold something to learn; a large weight of the first search makes a ranking that a micro model can
    follow: with the heuristic's own weight of 4 it is well-formed after SFT in 91 to 95 % of its episodes only."""
    max_users: int = 0
    """Users at most; 0 takes all."""
    num_drills: int = 8000
    """Copy drills before the dialogues, for a policy that starts from nothing; 0 leaves them out."""
    drill_batch_size: int = 32
    """Drills an update."""
    num_epochs: int = 2
    """Passes over the dialogues; 0 (and no drills) leaves the policy as it begins."""
    batch_size: int = 16
    """Dialogues an update."""
    learning_rate: float = 3e-3
    """Peak; warms up over 5 % of the updates and falls by a cosine to a fiftieth."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to it."""
    micro_batch_tokens: int = 32768
    """Tokens of one forward and backward pass, padding included."""
    checkpoint_every: int = 200
    """Updates between two checkpoints."""
    num_checked: int = 128
    """Users played afterwards to say how often the policy is well-formed; 0 leaves it out."""
    by_length: bool = True
    """Whether an update's dialogues are of like length, which saves padding. Length goes with the number of searches:
    with few updates a policy then unlearns in one what it learned in the last, and false is better."""
    adapters: bool = True
    """Whether backend.lora_rank holds for SFT too. False trains all weights here: embeddings of new tags want it."""


@dataclass(frozen=True)
class GrpoConfig:
    """One stage of reinforcement learning."""

    num_steps: int = 40
    """Updates of the stage."""
    users_per_step: int = 8
    """Groups a step; the paper: 128."""
    group_size: int = 8
    """Rollouts a user."""
    users: str = "all"
    """Whom to train on: all, or topA_B, whose target the TRM ranks behind A and within B; the paper: top0_100."""
    split: str = "train"
    """Whose held-out item is looked for: train, or valid. The recommender has been trained on the items of "train" and
    ranks them better than any new one; on "valid" its answers are as good as they are to new users."""
    max_users: int = 0
    """Users at most; 0 takes all of them."""
    learning_rate: float = 3e-4
    """The paper: 1e-6 for 7 billion parameters."""
    advantage: str = "per_turn"
    """group_mean (the paper's), grpo, dr_grpo, leave_one_out or per_turn."""
    normalization: str = "token"
    """token, sequence, or constant (Dr.GRPO; divides by max_tokens)."""
    clip_low: float = 0.2
    """How far a ratio may fall below 1."""
    clip_high: float = 0.28
    """How far it may rise above 1."""
    correction_limit: float = 2.0
    """The loss of a token is weighted by the ratio of the trainer's probability to the engine's, at most this; it makes
    up for an engine of other arithmetic. 0 leaves it out."""
    kl_coef: float = 0.0
    """Weight of the k3 KL to the policy that the stage began with; 0 keeps no reference. The paper: none."""
    num_minibatches: int = 1
    """Optimizer updates a step, each on its share of the groups."""
    max_tokens: int = 128
    """Sampled tokens a turn; the paper: 2,048."""
    temperature: float = 1.0
    """Of sampling. Other values than 1 make the gradient one of another policy."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to it."""
    warmup_steps: int = 2
    """Steps over which the learning rate rises."""
    micro_batch_tokens: int = 8192
    """Tokens of one forward and backward pass, padding included where there is any."""
    max_logp_difference: float = 1e-3
    """The run ends if the engine's and the trainer's log-probabilities of a token differ by more nats; 0 for engines in
    another precision than float32."""
    checkpoint_every: int = 10
    """Steps between two checkpoints."""
    transcript_every: int = 10
    """Steps between two transcripts in TensorBoard."""

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            ValueError: if a name is unknown or a value out of its range.
        """
        choices = (("advantage", ADVANTAGES), ("normalization", NORMALIZATIONS), ("split", ("train", "valid")))
        for name, known in choices:
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {value!r}{_hint(value, known)}")
        if self.group_size < 2:
            raise ValueError(f"expected group_size >= 2, got {self.group_size}; advantages compare group members")
        if not 1 <= self.num_minibatches <= self.users_per_step:
            raise ValueError(f"expected num_minibatches in 1..users_per_step, got {self.num_minibatches}")


@dataclass(frozen=True)
class TrainConfig:
    """SFT, then GRPO in stage cold, then in stage rec."""

    dataset: str = "ml-100k"
    """ml-100k, ml-1m, sample, or amazon."""
    category: str | None = None
    """The category, for amazon."""
    out: Path = Path("runs/quickstart")
    """Where stages, curves and checkpoints are written; what is there is resumed."""
    stages: Annotated[str, tyro.conf.arg(aliases=("--stage",))] = "sft,cold,rec"
    """Which to run, in this order; each begins with the policy of the one before it, which lies in out."""
    seed: int = 0
    """Of everything."""
    num_threads: int = 2
    """Threads of torch."""
    engine: str = "hf"
    """What samples: hf (transformers), vllm (in each process), or vllm-server (one that runs elsewhere, see server)."""
    engine_dtype: str = "float32"
    """Of vllm's copy of the weights, a server's too; bfloat16 wants max_logp_difference 0."""
    engine_memory: float = 0.4
    """Of a GPU's memory, vllm's share in this process."""
    server: ServerConfig = field(default_factory=ServerConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    game: GameOptions = field(default_factory=GameOptions)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    cold: GrpoConfig = field(default_factory=GrpoConfig)
    rec: GrpoConfig = field(default_factory=GrpoConfig)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages to run.

        Raises:
            ValueError: if one does not exist.
        """
        names = tuple(name.strip() for name in self.stages.split(",") if name.strip())
        for name in names:
            if name not in STAGES:
                raise ValueError(f"expected stages out of {', '.join(STAGES)}, got {name!r}{_hint(name, STAGES)}")
        return tuple(name for name in STAGES if name in names)


def list_presets() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def load_preset(name: str) -> TrainConfig:
    """Return the configuration of a preset's name, or of a YAML file.

    Raises:
        AgentError: if there is no such preset, or the file holds an unknown field.
    """
    path = PRESET_FOLDER / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name)
    if not path.is_file():
        raise AgentError(f"expected a preset out of {', '.join(list_presets())} or a YAML file, got {name!r}")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return build_config(TrainConfig, content, where=str(path))


def build_config(cls: type[ConfigT], content: Mapping[str, Any], *, where: str) -> ConfigT:
    """Return the dataclass with these fields; those of nested dataclasses come as mappings.

    Raises:
        AgentError: if a field does not exist (the closest is suggested) or a value is wrong.
    """
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in content.items():
        if name not in hints:
            raise AgentError(f"{where}: {cls.__name__} has no field {name!r}{_hint(name, tuple(hints))}")
        if dataclasses.is_dataclass(hints[name]):
            value = build_config(typing.cast(type[Any], hints[name]), value or {}, where=f"{where}: {name}")
        elif hints[name] is Path:
            value = Path(value)
        elif hints[name] is float:
            value = float(value)
        arguments[name] = value
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise AgentError(f"{where}: {error}") from error


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
