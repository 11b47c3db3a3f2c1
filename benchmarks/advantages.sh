#!/usr/bin/env bash
# Two ways to credit a turn, from the same warm start, at equal cost: per_turn against group_mean, in stage cold.
#
#   bash benchmarks/advantages.sh            seeds 0 1 2; after benchmarks/agents.sh, whose warm starts it takes
#   bash benchmarks/advantages.sh "0"
#
# Everything else is equal: policy, users, sampling seeds, steps, rollouts. per_turn is what agents.sh has trained with, and
# taken from there. Writes OUT/advantages.png and a table.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
seeds="${1:-0 1 2}" out="${OUT:-runs/agents}/ml-100k"
for seed in $seeds; do
    for advantage in per_turn group_mean; do
        run="$out/advantages/$advantage/seed$seed"
        mkdir -p "$run"
        [ -d "$run/sft" ] || cp -r "$out/seed$seed/llm/sft" "$run/sft"
        [ "$advantage" != per_turn ] || [ -d "$run/cold" ] || cp -r "$out/seed$seed/llm/cold" "$run/cold"
        python agents/llm_grpo.py quickstart --stages cold --seed "$seed" --out "$run" --cold.advantage "$advantage"
    done
done
python -m benchmarks.advantages "$out/advantages"
