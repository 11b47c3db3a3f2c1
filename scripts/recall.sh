#!/usr/bin/env bash
# The retrieval server: POST /recall on port 6001.
#
#   bash scripts/recall.sh                                MovieLens-100K
#   PRESET=paper bash scripts/recall.sh                   Amazon's Video_Games
#   bash scripts/recall.sh --port 6002 --split test       any option of `deeprec serve recall`
#
# Training and evaluation use it with --retriever http://127.0.0.1:6001; without, they retrieve in their own process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/preset.sh"
ready
exec deeprec serve recall "${data[@]}" --split "$SPLIT" --port "$RECALL_PORT" ${record:+"--${record%%:*}" "${record#*:}"} \
    "${rest[@]}"
