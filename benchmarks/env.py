"""Measures the environment: its own cost, the vector environment against single ones, and memory.

Run it from the repository's root: `OMP_NUM_THREADS=1 python -m benchmarks.env --write benchmarks/results/env.md`, with
DEEPREC_HOME naming the folder with the prepared data (`--dataset sample` needs none). Times are the process's own CPU
time, in one thread what the clock shows on a machine that does nothing else. Every ratio is of figures of the same run;
of the repeats of a measurement the fastest counts, for whatever else the machine does only makes it slower.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from deeprec_env.env import DeepRecEnv
from deeprec_env.episode import Episode
from deeprec_env.prompts import render_prompt
from deeprec_env.protocol import Recommend, Search, parse_action, render_items, render_recommend, render_search
from deeprec_env.recorded import RecordedEncoder, RecordedRetriever, recorded_world
from deeprec_env.vector_env import DeepRecVectorEnv
from deeprec_env.world import World, load_world
from trm.retriever import TRMRetriever
from trm.text_encoder import CachedEncoder, load_encoder
from trm.types import FloatArray

STAGES = ("rec", "cold")
SEED = 0
NUM_SEARCHES = 3
STEPS_AN_EPISODE = NUM_SEARCHES + 1
ENV_IDS = {"sample": "DeepRec-Sample-v0", "ml-100k": "DeepRec-MovieLens100K-v0"}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Recording:
    """A play of a vector environment: three different searches, then a ranking of what they found, again and again."""

    actions: list[list[str]]
    """[steps][environments]."""
    answers: list[list[tuple[int, ...]]]
    """The candidates of each action; () where there is no search."""
    histories: list[list[tuple[int, ...]]]
    """The history of the user whose episode begins after the step, where one does."""
    vector_by_text: dict[str, FloatArray]

    @property
    def num_steps(self) -> int:
        """Steps of all environments together."""
        return sum(map(len, self.actions))


def preferences(world: World, *, num_texts: int) -> list[str]:
    """Return different pairs of the catalogue's attributes, the commonest first."""
    counts = {value: num for values in world.catalog.attribute_values.values() for value, num in values.items()}
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    pairs = [f"{first}; {second}" for place, second in enumerate(ordered) for first in ordered[:place]]
    rounds = range(-(-num_texts // len(pairs)))
    return [f"{pair}, part {number}" if number else pair for number in rounds for pair in pairs][:num_texts]


def own_wishes(world: World, episode: Episode) -> list[str]:
    """Return the attributes that the user's history has most of, eked out by the catalogue's commonest."""
    catalog = world.catalog
    items = [catalog[item_id].attributes.values() for item_id in episode.history]
    liked = Counter(value for attributes in items for values in attributes for value in values)
    common = [value for counts in catalog.attribute_values.values() for value in counts]
    return list(dict.fromkeys([*sorted(liked, key=lambda value: (-liked[value], value)), *common]))[:NUM_SEARCHES]


def record(world: World, *, num_envs: int, num_steps: int, all_different: bool) -> Recording:
    """Play and keep what was done and answered.

    Args:
        world: with its recommender.
        num_envs: of the vector environment.
        num_steps: a multiple of STEPS_AN_EPISODE.
        all_different: whether no two searches of an episode's time have one preference; else each user's own wishes
            are searched, as agents do.
    """
    envs = _vector_env(world, num_envs)
    texts = preferences(world, num_texts=num_envs * NUM_SEARCHES)
    recording = Recording([], [], [], {})
    envs.reset(seed=SEED)
    for step in range(num_steps):
        episodes = [episode for episode in envs.episodes if episode is not None]
        place = step % STEPS_AN_EPISODE
        if place < NUM_SEARCHES:
            wishes = texts[place * num_envs : (place + 1) * num_envs]
            if not all_different:
                wishes = [own_wishes(world, episode)[place] for episode in episodes]
            recording.vector_by_text.update(zip(wishes, world.encoder.encode(wishes), strict=True))
            actions = [render_search(wish, reasoning="They liked such things before; I look there.") for wish in wishes]
        else:
            rankings = [[world.display(item_id).title for item_id in episode.pool[:10]] for episode in episodes]
            actions = [render_recommend(titles, reasoning="I rank what fits best.") for titles in rankings]
        envs.step(actions)
        recording.actions.append(actions)
        recording.answers.append([episode.turns[-1].candidate_ids for episode in episodes])
        recording.histories.append([episode.history for episode in envs.episodes if episode is not None])
    return recording


def _vector_env(world: World, num_envs: int, **options: Any) -> DeepRecVectorEnv:
    return DeepRecVectorEnv(num_envs, world=world, split="test", autoreset_mode=AutoresetMode.SAME_STEP, **options)


def fastest(measure: Callable[[], float], *, repeats: int) -> float:
    """Return the least of the repeats, in seconds; what was there before is no matter of the garbage collector."""
    gc.collect()
    gc.freeze()
    seconds = min(measure() for _ in range(repeats))
    gc.unfreeze()
    return seconds


def step_seconds(envs: VectorEnv, actions: Sequence[Sequence[str]]) -> float:
    """Return the seconds that the steps take, the first reset not counted."""
    envs.reset(seed=SEED)
    started = time.process_time()
    for step_actions in actions:
        envs.step(tuple(step_actions))
    return time.process_time() - started


def own_seconds(world: World, recording: Recording, *, stage: str) -> float:
    """Return the seconds that the environment takes for the recorded play.

    Args:
        world: with a recorded recommender and a recorded text encoder.
        recording: the play.
        stage: "cold" or "rec".
    """
    retriever = world.retriever
    assert isinstance(retriever, RecordedRetriever)
    retriever.load(ids for answers in recording.answers for ids in answers if ids)
    seconds = step_seconds(_vector_env(world, len(recording.actions[0]), stage=stage), recording.actions)
    assert retriever.num_left == 0
    return seconds


def bare_seconds(world: World, recording: Recording) -> float:
    """Return the seconds of a plain loop that parses the same actions and renders the same observations and prompts."""
    items = [world.display(item_id) for item_id in range(world.catalog.num_items + 1)]
    texts: list[str] = []
    started = time.process_time()
    for actions, answers, histories in zip(recording.actions, recording.answers, recording.histories, strict=True):
        texts = []
        for action, found, history in zip(actions, answers, histories, strict=True):
            match parse_action(action):
                case Search():
                    texts.append(render_items([items[item_id] for item_id in found]))
                case Recommend():
                    texts.append(render_prompt([items[item_id] for item_id in history[-20:]], top_k=10))
    return time.process_time() - started


def cold_world(world: World) -> World:
    """Return the same world with empty caches of histories, embeddings and beginnings."""
    assert isinstance(world.retriever, TRMRetriever)
    encoder = CachedEncoder(load_encoder(world.encoder.name), None)
    return World(
        world.name,
        world.catalog,
        world.splits,
        retriever=TRMRetriever(world.retriever.frozen, encoder),
        encoder=encoder,
        item_text_vectors=world.item_text_vectors,
        item_id_vectors=world.item_id_vectors,
    )


def vector_and_single_seconds(world: World, recording: Recording) -> tuple[float, float]:
    """Return the seconds of our vector environment and of a SyncVectorEnv of single ones, caches cold in both."""
    num_envs = len(recording.actions[0])
    ours = step_seconds(_vector_env(cold_world(world), num_envs), recording.actions)
    shared = cold_world(world)
    makers = [lambda: DeepRecEnv(world=shared, split="test")] * num_envs
    singles: VectorEnv = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    return ours, step_seconds(singles, recording.actions)


def memory_mb(env_id: str, *, num_envs: int) -> tuple[float, float]:
    """Return the process's resident memory in MB with one environment in play, and with num_envs; call it first."""
    envs: list[gym.Env] = []
    resident = []
    for count in (1, num_envs):
        while len(envs) < count:
            env = gym.make(env_id, split="test")
            env.reset(seed=len(envs))
            env.step(render_search("something light"))
            envs.append(env)
        gc.collect()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES / 1e6)
    return resident[0], resident[1]


def _memory_in_a_process_of_its_own(env_id: str, num_envs: int) -> tuple[float, float]:
    code = f"from benchmarks.env import memory_mb; print(*memory_mb({env_id!r}, num_envs={num_envs}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    one, many = map(float, done.stdout.split()[-2:])
    return one, many


def _row(what: str, figure: str, goal: str, *, met: bool) -> str:
    return f"| {what} | {figure} | {goal} | {'yes' if met else 'no'} |"


def measure(
    dataset: str, *, num_envs: int, num_steps: int, repeats: int, num_cold_repeats: int, num_single_envs: int
) -> str:
    """Return the table of all figures as Markdown."""
    world = load_world(dataset, auto_prepare=False)
    recording = record(world, num_envs=num_envs, num_steps=num_steps, all_different=True)
    played = recorded_world(world, RecordedRetriever(), RecordedEncoder(world.encoder, recording.vector_by_text))
    lines = ["| what | measured | goal | met |", "| --- | ---: | ---: | --- |"]
    for stage in STAGES:
        own_seconds(played, recording, stage=stage)  # what is made once a process
        pairs = [
            (
                fastest(lambda: own_seconds(played, recording, stage=stage), repeats=2),  # noqa: B023
                fastest(lambda: bare_seconds(world, recording), repeats=2),
            )
            for _ in range(repeats)
        ]
        own, bare = (min(column) / recording.num_steps for column in zip(*pairs, strict=True))
        name = f"own cost, stage `{stage}`, N = {num_envs}"
        lines.append(_row(f"{name}: steps/s", f"{1 / own:,.0f}", "20,000", met=1 / own >= 20_000))
        times = f"{own / bare:.2f} ({own * 1e6:.1f} / {bare * 1e6:.1f} µs)"
        lines.append(_row(f"{name}: times a bare loop", times, "3", met=own / bare <= 3))
    for all_different, label in ((False, "each user's own wishes"), (True, "no two preferences alike")):
        played_by_both = record(world, num_envs=num_envs, num_steps=num_steps, all_different=all_different)
        seconds = [vector_and_single_seconds(world, played_by_both) for _ in range(num_cold_repeats)]
        ours, singles = (min(column) for column in zip(*seconds, strict=True))
        num_played = played_by_both.num_steps
        figure = f"{singles / ours:.1f} ({num_played / ours:,.0f} / {num_played / singles:,.0f} steps/s)"
        name = f"vector env against {num_envs} single ones, TRM and caches cold in both, {label}"
        name += f" ({len(played_by_both.vector_by_text)} texts)"
        lines.append(_row(name, figure, "5", met=singles / ours >= 5))
    one, many = _memory_in_a_process_of_its_own(ENV_IDS[dataset], num_single_envs)
    name = f"memory of {num_single_envs:,} envs in play over that of one"
    lines.append(_row(name, f"{many - one:.0f} MB ({one:.0f} -> {many:.0f})", "200 MB", met=many - one < 200))
    return "\n".join(lines)


def main(
    dataset: str = "ml-100k",
    *,
    num_envs: int = 256,
    num_steps: int = 20,
    repeats: int = 10,
    num_cold_repeats: int = 2,
    num_single_envs: int = 1000,
    write: Path | None = None,
) -> None:
    """Print the figures, or write them into a page.

    Args:
        dataset: "ml-100k" or "sample", prepared.
        num_envs: of the vector environments.
        num_steps: of each, a multiple of 4.
        repeats: of the measurements of the own cost.
        num_cold_repeats: of those with the recommender, each with empty caches.
        num_single_envs: for the memory.
        write: the page.
    """
    table = measure(
        dataset,
        num_envs=num_envs,
        num_steps=num_steps,
        repeats=repeats,
        num_cold_repeats=num_cold_repeats,
        num_single_envs=num_single_envs,
    )
    text = f"""# The environment's speed and memory

`OMP_NUM_THREADS=1 python -m benchmarks.env --dataset {dataset}`, on {os.cpu_count()} CPU cores, Python
{sys.version.split()[0]}. Times are the process's CPU time; ratios are of figures of one run; the own cost is the
fastest of {2 * repeats} repeats, what is measured with the TRM the fastest of {num_cold_repeats}.

{table}

*Own cost*: the vector environment with a recorded recommender and text encoder; an episode is three searches with 20
candidates each and a ranking, and the next begins in the same step. A *bare loop* parses the same actions and renders
the same lists and prompts by the same functions. A prompt is made once for all episodes of a user, which the bare loop
does not do. *The TRM in both*: the same actions, {num_steps} steps of each environment, from empty caches of histories
and texts; the text encoder takes as long for a text of its own in both, so it is what is left where no two are alike.
"""
    if write is None:
        print(text)
    else:
        write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
