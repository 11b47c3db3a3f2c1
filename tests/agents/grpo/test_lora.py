import pytest
import torch

from agents.grpo.backend import OptimizerConfig, TorchBackend
from agents.grpo.config import BackendConfig
from tests.agents.grpo.worlds import build_game, build_tiny_policy

pytest.importorskip("peft", reason="pip install -e '.[lora]'")
ADAMW = OptimizerConfig(weight_decay=0.0, max_grad_norm=1.0, betas=(0.9, 0.99))


@pytest.mark.parametrize(("num_layers", "adapted"), [(0, {0, 1}), (1, {1}), (9, {0, 1})])
def test_only_the_last_layers_are_adapted_and_the_others_stay(num_layers: int, adapted: set[int]) -> None:
    model = build_tiny_policy(build_game()).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids_NT = torch.tensor([[5, 6, 7, 8, 9]])
    mask_NT = torch.tensor([[False, False, True, True, True]])
    backend = TorchBackend(model, BackendConfig(lora_rank=2, lora_layers=num_layers), ADAMW)
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in backend.trained()} == adapted

    for _ in range(2):  # the first step moves only half of each product, which is 0 until then
        logps_M, _ = backend.score(ids_NT, mask_NT)
        backend.accumulate(-logps_M.sum())
        backend.step(0.01)
    backend.follow()
    after = backend.sampling_model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in changed} == adapted
    assert backend.score(ids_NT, mask_NT)[0].detach().sum() > logps_M.detach().sum()


def test_a_negative_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="lora_layers >= 0"):
        BackendConfig(lora_layers=-1)
