#!/usr/bin/env bash
# Stage cold from a base model: the policy learns to search. Leaves the checkpoint folder OUT/cold.
#
#   bash scripts/cold_train.sh                            the micro model on MovieLens-100K
#   PRESET=paper bash scripts/cold_train.sh               Qwen2.5-7B on Video_Games
#   bash scripts/cold_train.sh --cold.num-steps 5         any field of the trainer's preset (deeprec train llm --help)
#
# Killed and started again it goes on from its last checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/preset.sh"
ready
train --stages "$COLD_STAGES" "${rest[@]}"
