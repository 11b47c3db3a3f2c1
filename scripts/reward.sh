#!/usr/bin/env bash
# The reward server of one stage: POST /reward.
#
#   bash scripts/reward.sh 5001 cold                      rewards of stage cold on port 5001
#   bash scripts/reward.sh 5002 rec --reward strict       any option of `deeprec serve reward`
#
# Clients of the original ask it; our own training scores in its process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/preset.sh"
[ "${#rest[@]}" -ge 2 ] || fail "expected PORT STAGE, such as: bash scripts/reward.sh 5001 cold"
port="${rest[0]}" stage="${rest[1]}"
ready
exec deeprec serve reward "${data[@]}" --split "$SPLIT" --reward "$REWARD" --port "$port" --stage "$stage" "${rest[@]:2}"
