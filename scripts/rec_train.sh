#!/usr/bin/env bash
# Stage rec from the checkpoint folder of stage cold: the policy learns to rank. Leaves the folder rec beside CKPT.
#
#   bash scripts/rec_train.sh CKPT                        such as runs/paper-flow/cold
#   bash scripts/rec_train.sh CKPT --rec.num-steps 5      any field of the trainer's preset (deeprec train llm --help)
#
# Killed and started again it goes on from its last checkpoint. A CKPT that is not called cold is linked as OUT/cold,
# and the folder rec is then OUT/rec.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/preset.sh"
[ "${#rest[@]}" -ge 1 ] || fail "expected CKPT, the folder of stage cold, such as runs/paper-flow/cold"
[ -d "${rest[0]}/policy" ] || fail "expected CKPT to be the folder of a finished stage, got ${rest[0]} without policy/"
ckpt="$(cd "${rest[0]}" && pwd)"
if [ "$(basename "$ckpt")" = cold ]; then
    OUT="$(dirname "$ckpt")"
else
    [ ! -e "$OUT/cold" ] || [ -L "$OUT/cold" ] || fail "$OUT/cold is there already; choose another --out"
    mkdir -p "$OUT" && ln -sfn "$ckpt" "$OUT/cold"
fi
ready
train --stages rec "${rest[@]:1}"
