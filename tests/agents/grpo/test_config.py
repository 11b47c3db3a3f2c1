import dataclasses
from pathlib import Path

import pytest

from agents.base import AgentError
from agents.cli.train import llm_arguments
from agents.grpo.config import GrpoConfig, ServerConfig, TrainConfig, build_config, list_presets, load_preset
from agents.llm_grpo import parse_config
from agents.registry import make_agent


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_can_be_read_and_its_teacher_exists(name: str) -> None:
    config = load_preset(name)
    assert config.stage_names == ("sft", "cold", "rec")
    assert make_agent(config.sft.teacher).name.startswith("heuristic")


def test_there_is_a_fast_quickstart() -> None:
    assert {"quickstart", "quickstart_fast"} <= set(list_presets())
    assert parse_config(["quickstart", "--fast"]) == load_preset("quickstart_fast")
    assert load_preset("quickstart_fast").rec.num_steps < load_preset("quickstart").rec.num_steps


def test_the_command_line_changes_a_preset() -> None:
    arguments = ["quickstart", "--out", "x", "--dataset", "sample", "--stages", "sft,cold", "--rec.num-steps", "3"]
    config = parse_config(arguments)
    assert config.out == Path("x")
    assert config.dataset == "sample"
    assert config.stage_names == ("sft", "cold")
    assert config.rec.num_steps == 3
    assert config.cold == load_preset("quickstart").cold


def test_a_server_elsewhere_is_named_on_the_command_line() -> None:
    config = parse_config(
        ["--engine", "vllm-server", "--server.url", "http://HOST:8000", "--server.weights", "/shared"]
    )
    assert config.engine == "vllm-server"
    assert config.server == ServerConfig("http://HOST:8000", weights="/shared")


def test_a_file_is_a_preset_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: sample\nrec: {advantage: grpo, learning_rate: 1e-3}\n")
    config = load_preset(str(path))
    assert config.rec == GrpoConfig(advantage="grpo", learning_rate=1e-3)
    assert config.cold == GrpoConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rec": {"num_step": 1}}, "did you mean 'num_steps'"),
        ({"rec": {"advantage": "per_trun"}}, "did you mean 'per_turn'"),
        ({"rec": {"normalization": "tokens"}}, "did you mean 'token'"),
        ({"rec": {"group_size": 1}}, "group_size >= 2"),
        ({"rec": {"num_minibatches": 99}}, "num_minibatches"),
        ({"nothing": 1}, "no field 'nothing'"),
    ],
)
def test_mistakes_are_named(content: dict[str, object], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        build_config(TrainConfig, content, where="here")


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'cold'"):
        _ = TrainConfig(stages="sft,clod").stage_names


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(AgentError, match="quickstart"):
        load_preset("quickstrat")


def test_stage_is_a_name_for_one_of_the_stages() -> None:
    assert parse_config(["smollm2", "--stage", "cold"]).stage_names == ("cold",)


def test_without_a_name_the_quickstart_is_meant() -> None:
    assert parse_config(["--stages", "sft"]) == dataclasses.replace(load_preset("quickstart"), stages="sft")
    assert parse_config(["--fast"]) == load_preset("quickstart_fast")


def test_the_papers_preset_is_the_papers() -> None:
    config = load_preset("qwen2.5-7b")
    assert config.policy.pretrained == "Qwen/Qwen2.5-7B"
    assert config.policy.max_tokens == 16384
    assert (config.cold.num_steps, config.rec.num_steps) == (20, 80)
    assert dataclasses.replace(config.rec, num_steps=20) == config.cold
    stage = config.cold
    assert (stage.users_per_step, stage.group_size, stage.max_tokens, stage.users) == (128, 8, 2048, "top0_100")
    assert (stage.learning_rate, stage.kl_coef, stage.clip_low, stage.clip_high) == (1e-6, 0.0, 0.2, 0.28)
    assert (stage.advantage, stage.temperature) == ("group_mean", 1.0)
    assert config.sft.num_epochs == config.sft.num_drills == 0
    assert (config.backend.name, config.engine) == ("deepspeed", "vllm")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["train", "llm", "x", "--stage", "cold"], ["x", "--stage", "cold"]),
        (["train", "sb3_ppo"], None),
        (["evaluate"], None),
        (
            ["sft", "x", "--teacher", "llm:a", "--num_samples=8", "--keep-best", "1", "--out", "o"],
            ["x", "--sft.teacher", "llm:a", "--sft.num_samples=8", "--sft.keep-best", "1", "--out", "o"],
        ),
    ],
)
def test_the_commands_of_a_language_model_are_the_scripts_arguments(given: list[str], meant: list[str] | None) -> None:
    expected = meant if meant is None or given[0] != "sft" else [*meant, "--stages", "sft"]
    assert llm_arguments(given) == expected
