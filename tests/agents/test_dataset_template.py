"""The template of a package with a data set: it installs, is found by its entry point, and passes its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "examples" / "plugin_dataset"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install a copy of the template beside everything else, and return the environment that finds it."""
    if not {"pip", "setuptools"} <= {found.name for found in distributions()}:
        pytest.skip("pip and setuptools are needed to install a package")
    folder = tmp_path_factory.mktemp("dataset_plugin")
    shutil.copytree(TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [*options, "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *command], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    paths = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DEEPREC_HOME": str(folder / "home")}


def _run(environment: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_command_prepares_the_data_set_and_says_what_it_left_out(installed: dict[str, str], tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "agents.cli", "prepare", "my_loans")
    assert done.returncode == 0, done.stderr
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert "users below min interactions 1" in lines
    assert "items not described 1" in lines
    assert any(line.startswith("my_loans: 29 users, 21 items; in ") for line in lines)
    wrong = _run(installed, tmp_path, "agents.cli", "prepare", "my_laons")
    assert wrong.returncode != 0
    assert "did you mean 'my_loans'?" in wrong.stderr


@pytest.mark.slow
def test_its_own_tests_pass(installed: dict[str, str], tmp_path: Path) -> None:
    done = _run(installed, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", str(TEMPLATE / "tests"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
