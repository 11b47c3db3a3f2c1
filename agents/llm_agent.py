"""The agent *llm*: a language model that plays by sampling token ids, and remembers them exactly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from agents.base import AgentError, EngineError, EpisodeView, answer_all
from agents.grpo.drift import count_drift
from agents.grpo.engines import Engine
from agents.grpo.generation.base import (
    Completion,
    FinishReason,
    GenerationRequest,
    Generator,
    SamplingParams,
    streaming,
)
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.generation.stops import turn_stops
from agents.grpo.policy import Policy, load_policy
from agents.grpo.tokenizer import decode, encode
from agents.grpo.types import TokenTrace
from deeprec_env.protocol import CutAction, MalformedReason

if TYPE_CHECKING:
    from typing import Self

POLICY_CARD = "policy.json"
"""Beside the weights: what the policy was trained on."""
_GATHER = 16
"""An environment step waits till one in so many of the episodes under way is answered: retrieval is cheaper for many at
once, and the engine rests meanwhile. Few episodes are stepped one by one."""


@dataclass(frozen=True)
class PolicyCard:
    """What must be known of a policy to play with it."""

    name: str = "llm"
    """How it is called in tables."""
    game_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of GameConfig that it was trained with, such as its prompts' style."""
    max_tokens: int = 128
    """Sampled tokens a turn."""

    def save(self, folder: Path) -> None:
        """Write the card beside the weights."""
        (folder / POLICY_CARD).write_text(json.dumps(dataclasses.asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return a folder's card; the default one if it has none.

        Raises:
            AgentError: if the card is broken.
        """
        path = folder / POLICY_CARD
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise AgentError(f"cannot read {path}: {error}") from error


class LlmAgent:
    """Plays by a language model; tokens in, tokens out.

    A prompt is encoded once. Each turn appends the sampled ids and then the encoded observation; nothing is decoded and
    encoded again. The action text is decoded from the sampled ids, tags included.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_context: int,
        max_tokens: int = 128,
        temperature: float = 1.0,
        name: str = "llm",
        game_options: Mapping[str, Any] | None = None,
        fingerprint: str = "",
    ) -> None:
        """Build the agent.

        Args:
            generator: the engine.
            tokenizer: of the model that the engine samples from, with the two closing tags as single tokens.
            max_context: tokens of a whole episode at most; an episode that would pass it gets "" as its action.
            max_tokens: sampled tokens a turn at most.
            temperature: of sampling; 0 is greedy.
            name: how it is called in tables.
            game_options: fields of GameConfig that the model was trained with.
            fingerprint: tells policies of one name apart.
        """
        self.name = name
        self.game_options = dict(game_options or {})
        self.fingerprint = f"{fingerprint} {max_tokens} {temperature}"
        self._engine = streaming(generator)
        self._tokenizer = tokenizer
        self._max_context = max_context
        stops = turn_stops(tokenizer)
        self._params = SamplingParams(max_tokens, stops.ids, temperature, stops.strings)
        self._traces: dict[int, TokenTrace] = {}
        self._num_asked = 0
        self._ready: list[tuple[int, str]] = []

    @classmethod
    def build(
        cls,
        path: str,
        *,
        temperature: float = 1.0,
        name: str | None = None,
        engine: str = "hf",
        dtype: str = "float32",
    ) -> Self:
        """Return the agent of a folder: a stage of `llm_grpo.py`, or a policy in Hugging Face format.

        Args:
            path: such as runs/quickstart/rec.
            temperature: of sampling; 0 is greedy.
            name: how it is called in tables; by default as its stage says.
            engine: hf or vllm.
            dtype: of vllm's weights.

        Raises:
            AgentError: if there is no policy there, or vLLM does not start.
            ValueError: if there is no such engine.
        """
        folder = Path(path)
        folder = folder / "policy" if (folder / "policy").is_dir() else folder
        policy, card = load_policy(folder), PolicyCard.load(folder)
        suffix = "" if temperature == 1.0 else f", temperature {temperature:g}"
        return cls.of_policy(
            policy,
            card,
            generator=Engine(engine, dtype=dtype).follow(policy),
            temperature=temperature,
            name=name or card.name + suffix,
            fingerprint=_digest(folder),
        )

    @classmethod
    def of_policy(
        cls,
        policy: Policy,
        card: PolicyCard,
        *,
        temperature: float,
        name: str,
        fingerprint: str = "",
        generator: Generator | None = None,
    ) -> Self:
        """Return the agent of a policy in memory, sampled by `generator` or else by transformers."""
        return cls(
            generator or HFGenerator(policy.model, policy.tokenizer),
            policy.tokenizer,
            max_context=policy.max_length,
            max_tokens=card.max_tokens,
            temperature=temperature,
            name=name,
            game_options=card.game_options,
            fingerprint=fingerprint,
        )

    @property
    def generator(self) -> Generator:
        """The engine."""
        return self._engine

    def trace(self, key: int) -> TokenTrace:
        """Return the tokens of the episode that was, or is, played under this key.

        Raises:
            KeyError: if none was.
        """
        return self._traces[key]

    def num_tokens(self, key: int) -> int | None:
        """Return how many tokens were sampled in the episode of this key; None if none was played under it."""
        trace = self._traces.get(key)
        return None if trace is None else sum(trace.loss_mask)

    def drift(self, key: int) -> int:
        """Return how many tokens sampled under this key would be others, had the text been encoded again."""
        return count_drift(self._tokenizer, self._traces[key])

    def forget(self) -> None:
        """Drop all traces; to be called between two calls of `play` whose traces are not wanted any more."""
        self._traces = {}

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one sampled action an episode; a CutAction where a limit on tokens was hit, "" if no room was left."""
        return answer_all(self, episodes)

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        """Ask for an action of each episode; see `collect`."""
        if any(view.key == 0 and view.num_turns == 0 for view in episodes):
            self._abandon()
        requests = []
        for view in episodes:
            trace = self._follow(view)
            if len(trace) < self._max_context:
                requests.append(GenerationRequest(view.key, trace.context, _turn_seed(view)))
            else:
                trace.append_turn([], [], cut=True)
                self._ready.append((view.key, CutAction("", MalformedReason.EPISODE_TOKENS)))
        if requests:
            self._engine.submit(requests, self._params)
            self._num_asked += len(requests)

    def collect(self) -> list[tuple[int, str]]:
        """Return key and action of the episodes that are answered, at least one of those that were submitted.

        Raises:
            EngineError: if the engine lost some; the answers to others come with the next call.
        """
        wanted = max(1, self._num_asked // _GATHER)
        while len(self._ready) < wanted:
            try:
                completions = self._engine.collect()
            except EngineError as error:
                self._num_asked -= len(error.keys)
                raise
            if not completions:
                break
            self._num_asked -= len(completions)
            self._ready += [(key, self._record(self._traces[key], completion)) for key, completion in completions]
        ready, self._ready = self._ready, []
        return ready

    def _abandon(self) -> None:
        """Give up what a call of `play` that broke down has left behind: keys start anew with each call."""
        if self._num_asked or self._ready:
            self._engine.abandon()
            self._num_asked, self._ready = 0, []

    def _follow(self, view: EpisodeView) -> TokenTrace:
        """Return the episode's trace, brought up to the newest observation."""
        if view.num_turns == 0:
            trace = TokenTrace(tuple(encode(self._tokenizer, view.prompt)))
            self._traces[view.key] = trace
            return trace
        trace = self._traces[view.key]
        trace.append_observation(encode(self._tokenizer, view.last_observation))
        return trace

    def _record(self, trace: TokenTrace, completion: Completion) -> str:
        """Append a completion, as far as there is room for it, and return its text."""
        room = self._max_context - len(trace)
        ids, logps = completion.ids[:room], completion.logps[:room]
        stopped = completion.finish is FinishReason.STOP and len(ids) == len(completion.ids)
        trace.append_turn(ids, logps, cut=not stopped)
        text = decode(self._tokenizer, ids)
        if stopped:
            return text
        whole_turn = len(ids) == self._params.max_tokens
        return CutAction(text, MalformedReason.TURN_TOKENS if whole_turn else MalformedReason.EPISODE_TOKENS)


def _turn_seed(view: EpisodeView) -> int:
    return int(np.random.SeedSequence([view.seed, view.num_turns]).generate_state(1)[0])


def _digest(folder: Path) -> str:
    """Return a digest of the weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
