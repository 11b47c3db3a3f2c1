"""The benchmark of the environment measures what it says, on few environments."""

import pytest

from benchmarks import env as benchmark
from deeprec_env.protocol import render_items
from deeprec_env.recorded import NotRecorded, RecordedEncoder, RecordedRetriever, recorded_world
from deeprec_env.world import load_world


def test_the_bare_loop_renders_what_the_environment_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    world = load_world("sample")
    recording = benchmark.record(world, num_envs=3, num_steps=8, all_different=True)
    assert [[bool(ids) for ids in answers] for answers in recording.answers] == ([[True] * 3] * 3 + [[False] * 3]) * 2
    rendered: list[str] = []
    for name in ("render_items", "render_prompt"):
        real = getattr(benchmark, name)
        monkeypatch.setattr(
            benchmark, name, lambda *a, real=real, **k: (rendered.append(real(*a, **k)), rendered[-1])[1]
        )
    benchmark.bare_seconds(world, recording)
    retriever = RecordedRetriever(ids for answers in recording.answers for ids in answers if ids)
    played = recorded_world(world, retriever, RecordedEncoder(world.encoder, recording.vector_by_text))
    envs = benchmark._vector_env(played, 3, stage="cold")
    envs.reset(seed=benchmark.SEED)
    assert [text for actions in recording.actions for text in envs.step(actions)[0]] == rendered
    assert rendered[0] == render_items([world.display(item_id) for item_id in recording.answers[0][0]])
    with pytest.raises(NotRecorded, match="the play is another one"):
        envs.step(recording.actions[0])
    with pytest.raises(NotRecorded, match="'never heard'"):
        played.encoder.encode(["never heard"])


def test_all_figures_come_in_one_table() -> None:
    table = benchmark.measure("sample", num_envs=4, num_steps=8, repeats=1, num_cold_repeats=1, num_single_envs=20)
    assert table.count("\n") == 1 + 7
    for text in ("20,000", "times a bare loop", "single ones", "memory of 20 envs"):
        assert text in table
