"""Requests by the thousand, made from the services' own schemas to be right and to be wrong: not one 5xx."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.services.processes import Service

SERVERS = {
    "recall": ("recall", "--dataset", "sample"),
    "reward-paper-cold": ("reward", "--dataset", "sample", "--stage", "cold"),
    "reward-paper-rec": ("reward", "--dataset", "sample", "--stage", "rec"),
    "reward-strict-cold": ("reward", "--dataset", "sample", "--stage", "cold", "--reward", "strict"),
}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_no_request_makes_a_server_fail(name: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    with Service(*SERVERS[name]) as service:
        command = [str(program), "run", f"{service.url}/openapi.json", "--checks", CHECKS, "--seed", "1"]
        command += ["--max-examples", "150", "--phases", "examples,coverage,fuzzing", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=tmp_path)
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    counts = re.findall(r'deeprec_requests_total\{path="([^"]*)",status="(\d+)"\} (\S+)', text)
    assert sum(float(count) for _, _, count in counts) > 200
    assert {status for _, status, _ in counts if status.startswith("5")} == set(), counts
    assert {"200", "422"} <= {status for path, status, _ in counts if path in ("/recall", "/reward")}
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
