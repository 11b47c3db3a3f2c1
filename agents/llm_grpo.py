"""Train an LLM agent: SFT on an agent's episodes, then GRPO in stage cold, then in stage rec.

    python agents/llm_grpo.py quickstart                      a micro Llama on MovieLens-100K, minutes on two cores
    python agents/llm_grpo.py quickstart --fast               every step, shorter
    python agents/llm_grpo.py quickstart --rec.num-steps 80   any field of the preset, see --help
    python agents/llm_grpo.py smollm2 --stage cold            a pretrained model, one stage at a time
    torchrun --nproc-per-node 8 agents/llm_grpo.py ...        one process a GPU, see docs/training.md

Every stage leaves a folder OUT/STAGE with its policy in Hugging Face format, metrics.jsonl and TensorBoard events. A
stage that is finished is skipped, one that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a file: the packages lie beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro
from rich.console import Console
from transformers.utils import logging as transformers_logging

from agents.base import AgentError
from agents.grpo.config import STAGES, GrpoConfig, TrainConfig, list_presets, load_preset
from agents.grpo.demonstrations import demonstrate
from agents.grpo.drills import copy_drills
from agents.grpo.engines import Engine
from agents.grpo.policy import Policy, build_policy, load_policy, save_policy
from agents.grpo.pretrained import load_pretrained
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.ranks import Ranks, join_ranks
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import train_tokenizer
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from agents.registry import make_agent
from agents.slope import MIN_STEPS, reward_slope
from deeprec_env.errors import DeepRecError
from trm.errors import TRMError

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)
_DONE = "done.json"
_LABELS = {"sft": "llm after SFT", "cold": "llm after cold", "rec": "llm after rec"}


class Run:
    """One run of the stages over one world."""

    def __init__(self, config: TrainConfig, *, console: Console) -> None:
        """Bind config and console; nothing is loaded yet."""
        self._config, self._console = config, console
        self._game: Game | None = None
        server = config.server
        if not server.weights:
            server = dataclasses.replace(server, weights=str(config.out / "server_weights"))
        self._engine = Engine(
            config.engine, dtype=config.engine_dtype, memory_share=config.engine_memory, server=server
        )

    def stage(self, name: str) -> None:
        """Run a stage, unless it is finished."""
        folder = self._config.out / name
        if (folder / _DONE).is_file():
            summary = json.loads((folder / _DONE).read_text(encoding="utf-8"))["summary"]
            self._console.print(f"{name}: already finished ({summary})")
            return
        started = time.perf_counter()
        policy = self._sft(folder) if name == "sft" else self._grpo(name, folder)
        ranks = Ranks.current()
        if ranks.first:
            summary = self._checked(policy) if name == "sft" else reward_summary(folder)
            self._finish(name, policy, summary, seconds=time.perf_counter() - started)
        ranks.barrier()

    def _world_game(self, stage: str) -> Game:
        from deeprec_env.config import GameConfig
        from deeprec_env.game import Game
        from deeprec_env.world import load_world

        options = self._config.game
        if self._game is None or self._game.config.stage != stage:
            world = load_world(self._config.dataset, category=self._config.category)
            rules = GameConfig(
                stage=stage,
                reward=options.reward,
                prompt_style=options.prompt_style,
                max_history=options.max_history,
            )
            self._game = Game(world, rules)
        return self._game

    def _users(self, game: Game, limit: int) -> list[int]:
        num_users = game.world.splits.num_users
        return list(range(min(limit, num_users) if limit else num_users))

    def _sft(self, folder: Path) -> Policy:
        config, game = self._config, self._world_game("rec")
        if config.policy.pretrained and not config.sft.num_epochs and not config.sft.num_drills:
            return load_pretrained(config.policy.pretrained, max_tokens=config.policy.max_tokens)
        teacher = make_agent(config.sft.teacher)
        users = self._users(game, config.sft.max_users)
        episodes = demonstrate(game, teacher, users, config.sft, seed=config.seed)
        policy = self._first_policy(game, episodes)
        tokenizer = policy.tokenizer
        traces = [encode_episode(episode, tokenizer) for episode in episodes]
        drills = copy_drills(game, tokenizer, count=config.sft.num_drills, seed=config.seed)
        num_tokens = sum(map(len, traces))
        self._console.print(
            f"sft: {len(traces)} dialogues of {teacher.name}, {num_tokens / len(traces):.0f} tokens each; "
            f"{policy.num_parameters / 1e6:.1f} million parameters, vocabulary {len(tokenizer)}"
        )
        phases = [
            Phase(drills, 1, config.sft.drill_batch_size),
            Phase(traces, config.sft.num_epochs, config.sft.batch_size),
        ]
        backend = config.backend if config.sft.adapters else dataclasses.replace(config.backend, lora_rank=0)
        return train_sft(policy, phases, config.sft, folder=folder, seed=config.seed, backend=backend)

    def _first_policy(self, game: Game, episodes: Sequence[Episode]) -> Policy:
        """Return the policy that SFT begins with: a pretrained one, or a micro Llama with a tokenizer of its own."""
        options = self._config.policy
        if options.pretrained:
            return load_pretrained(options.pretrained, max_tokens=options.max_tokens)
        texts = [episode.transcript for episode in episodes]
        tokenizer = train_tokenizer(texts, titles=_titles(game), vocab_size=options.vocab_size)
        return build_policy(options, tokenizer, seed=self._config.seed)

    def _checked(self, policy: Policy) -> str:
        """Return in words how often the policy is well-formed after SFT."""
        game, limit = self._world_game("rec"), self._config.sft.num_checked
        if not limit:
            return "not checked"
        users = self._users(game, self._config.sft.max_users)
        agent = LlmAgent.of_policy(
            policy, self._card("sft"), temperature=1.0, name="check", generator=self._engine.follow_here(policy)
        )
        picked = users[:: max(1, len(users) // limit)][:limit]
        episodes = play(game, agent, picked, split="valid", seed=self._config.seed)
        share = sum(episode.well_formed for episode in episodes) / len(episodes)
        return f"well-formed in {share:.1%} of {len(episodes)} sampled episodes of split valid"

    def _grpo(self, name: str, folder: Path) -> Policy:
        previous = self._config.out / STAGES[STAGES.index(name) - 1]
        if not (previous / _DONE).is_file():
            raise AgentError(
                f"stage {name} begins with the policy of stage {previous.name}, which is not in {previous}"
            )
        config: GrpoConfig = getattr(self._config, name)
        game = self._world_game(name)
        setup = StageSetup(
            name=name,
            game=game,
            users=stage_users(game, config),
            folder=folder,
            seed=self._config.seed + STAGES.index(name),
            card=self._card(name),
            engine=self._engine,
            backend=self._config.backend,
        )
        return train_stage(load_policy(previous / "policy"), config, setup)

    def _card(self, name: str) -> PolicyCard:
        options = self._config.game
        return PolicyCard(
            name=_LABELS[name],
            game_options={"prompt_style": options.prompt_style, "max_history": options.max_history},
            max_tokens=(self._config.rec if name == "sft" else getattr(self._config, name)).max_tokens,
        )

    def _finish(self, name: str, policy: Policy, summary: str, *, seconds: float) -> None:
        """Publish the stage's policy; the file `done.json` comes last."""
        folder = self._config.out / name
        final, draft = folder / "policy", folder / ".policy"
        shutil.rmtree(draft, ignore_errors=True)
        save_policy(policy, draft)
        self._card(name).save(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
        content = {"summary": summary, "seconds": round(seconds, 1), "config": _plain(self._config)}
        partial = folder / f".{_DONE}"
        partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
        partial.replace(folder / _DONE)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self._console.print(f"{name}: {summary}; {seconds:.0f} s; policy in {final}")


def stage_users(game: Game, config: GrpoConfig) -> list[int]:
    """Return the users that a stage trains on, those first whose target the TRM ranks best.

    Raises:
        AgentError: if the configuration names no such users.
    """
    from deeprec_env.users import select_users, target_ranks

    try:
        users = select_users(game.world, config.users, config.split)
    except ValueError as error:
        raise AgentError(f"users: {error}") from error
    if config.max_users and config.max_users < len(users):
        users = users[: config.max_users]
    ranks = target_ranks(game.world, config.split)[users]
    return [int(user) for user in users[ranks.argsort(kind="stable")]]


def reward_summary(folder: Path) -> str:
    """Return in words how a stage's mean training reward went, with the slope's 95 % interval."""
    rewards = [record["reward_mean"] for record in read_metrics(folder / METRICS_FILE) if "reward_mean" in record]
    part = max(1, len(rewards) // 5)
    first, last = sum(rewards[:part]) / part, sum(rewards[-part:]) / part
    text = f"mean reward {first:.3f} (first fifth) -> {last:.3f} (last fifth of {len(rewards)} steps)"
    if len(rewards) < MIN_STEPS:
        return text
    return f"{text}, slope {reward_slope(range(len(rewards)), rewards)}"


def _titles(game: Game) -> list[str]:
    """Return the catalogue's titles as they are shown, those that are chosen most often first."""
    counts = game.world.splits.train_counts()
    order = sorted(range(1, game.world.catalog.num_items + 1), key=lambda item_id: (-counts[item_id], item_id))
    return [game.world.display(item_id).title for item_id in order]


def _plain(config: TrainConfig) -> dict[str, object]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """Return the preset's configuration with the command line's changes."""
    rest = [argument for argument in arguments if argument != "--fast"]
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else "quickstart"
    if "--fast" in arguments:
        preset = f"{preset}_fast"
    description = f"{__doc__}\nPresets: {', '.join(list_presets())}, or a YAML file. --fast takes PRESET_fast."
    return tyro.cli(
        TrainConfig, default=load_preset(preset), args=rest, prog="llm_grpo.py PRESET [--fast]", description=description
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages and return the exit status."""
    console = Console()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("agents").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        config = parse_config(sys.argv[1:] if arguments is None else arguments)
        torch.set_num_threads(config.num_threads)
        with join_ranks() as ranks:
            if not ranks.first:
                logging.getLogger("agents").setLevel(logging.ERROR)
                console.quiet = True
            run = Run(config, console=console)
            for name in config.stage_names:
                run.stage(name)
    except (AgentError, DeepRecError, TRMError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}")
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
