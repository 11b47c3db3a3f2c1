"""What the README shows runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym

import deeprec_env  # noqa: F401

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def block(language: str, containing: str) -> str:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert len(found) == 1, f"expected one {language} block with {containing!r}, got {len(found)}"
    return found[0]


def test_the_agent_of_the_readme_stands_in_a_table(tmp_path):
    (tmp_path / "my_agent.py").write_text(block("python", "class Newest"), encoding="utf-8")
    command = block("bash", "my_agent:Newest").split()[1:]
    done = subprocess.run(
        [sys.executable, "-m", "agents.cli", *command, "--users", "20"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("newest", "trm", "heuristic"):
        assert f"| {name} |" in done.stdout


def test_the_step_of_the_readme_is_a_search():
    code = block("python", "gym.make(").replace("DeepRec-MovieLens100K-v0", "DeepRec-Sample-v0")
    names: dict[str, object] = {"gym": gym}
    exec(compile(code, "README.md", "exec"), names)
    assert names["info"]["action_kind"] == "search"  # type: ignore[index]
    assert str(names["observation"]).lstrip().startswith("<|begin_of_item_list|>")
