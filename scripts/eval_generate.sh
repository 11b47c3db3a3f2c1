#!/usr/bin/env bash
# Plays the test users START to END (from 0, END not included) and writes one JSON line each into OUT/test-CKPT.
#
#   bash scripts/eval_generate.sh GPU START END CKPT      such as: 0 0 500 runs/paper-flow/rec
#   bash scripts/eval_generate.sh cpu 500 943 CKPT        without a GPU, the other users; both at a time if you like
#   bash scripts/eval_generate.sh cpu 0 943 heuristic     an agent by its name instead of a checkpoint folder
#
# Killed and started again it plays only what is missing. Further arguments are options of `deeprec generate`.
# python scripts/metric_calc_rec.py --test_results_dir OUT/test-CKPT sums up.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/preset.sh"
[ "${#rest[@]}" -ge 4 ] || fail "expected GPU START END CKPT, such as: cpu 0 100 runs/paper-flow/rec"
gpu="${rest[0]}" start="${rest[1]}" end="${rest[2]}" ckpt="${rest[3]%/}"
export CUDA_VISIBLE_DEVICES="${gpu#cpu}"
agent="$ckpt"
[ ! -d "$ckpt" ] || agent="llm:$(cd "$ckpt" && pwd)?temperature=$TEMPERATURE&engine=$ENGINE"
ready
exec deeprec generate "$agent" "${data[@]}" --split test --start "$start" --end "$end" --batch-size "$BATCH_SIZE" \
    --out "$OUT/test-$(basename "$ckpt")" "${rest[@]:4}"
