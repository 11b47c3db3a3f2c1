"""The template of a package with an agent: it installs, is found by its entry point, and passes its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "examples" / "plugin_agent"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install a copy of the template beside everything else, and return the environment that finds it."""
    # By the installed packages' names: looking for the module setuptools warns where distutils has been imported.
    if not {"pip", "setuptools"} <= {found.name for found in distributions()}:
        pytest.skip("pip and setuptools are needed to install a package")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder / "site"),
        str(folder / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])}


def _run(environment: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_command_finds_the_agent_and_puts_it_into_the_table(installed: dict[str, str], tmp_path: Path) -> None:
    listed = _run(installed, tmp_path, "agents.cli", "agents")
    assert listed.returncode == 0, listed.stderr
    (line,) = [line for line in listed.stdout.splitlines() if line.startswith("my_agent ")]
    assert line.endswith("Asks for the attributes of each of the last few choices, the latest first.")
    args = ("--dataset", "sample", "--users", "20", "--baseline", "trm", "--quiet", "--out", "out")
    played = _run(installed, tmp_path, "agents.cli", "evaluate", "--agents", "my_agent?depth=3,trm", *args)
    assert played.returncode == 0, played.stderr
    assert "| my_agent | 20 |" in played.stdout
    assert "| my_agent | trm | 20 |" in played.stdout


@pytest.mark.slow
def test_its_own_tests_pass(installed: dict[str, str], tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
