#!/usr/bin/env bash
# Trains and evaluates every agent on one data set, for several seeds, and prints one table a seed and their spread.
#
#   bash benchmarks/agents.sh                                      MovieLens-100K, seeds 0 1 2
#   bash benchmarks/agents.sh ml-100k "0"                          one seed
#   LLM= bash benchmarks/agents.sh "amazon --category Industrial_and_Scientific" "0 1 2"     without the language model
#
#   LLM="PRESET OPTIONS"   of agents/llm_grpo.py; "quickstart" if not set, "" leaves the language model out
#   STAGES="sft cold rec"  of the language model that are played
#   OUT=runs/agents        where everything is written; what is there is reused
# Every command is resumable. The environment must be active (source .venv/bin/activate).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
read -ra data <<<"${1:-ml-100k}"
seeds="${2:-0 1 2}" out="${OUT:-runs/agents}/${data[-1]}"
read -ra llm <<<"${LLM-quickstart}"
folders=()
for seed in $seeds; do
    run="$out/seed$seed"
    agents="random,popularity,trm,heuristic,oracle"
    deeprec train sb3_ppo --dataset "${data[@]}" --seed "$seed" --out "$run/sb3_ppo"
    agents+=",sb3_ppo:$run/sb3_ppo"
    if [ "${#llm[@]}" -gt 0 ]; then
        python agents/llm_grpo.py "${llm[@]}" --dataset "${data[@]}" --seed "$seed" --out "$run/llm"
        for stage in ${STAGES:-sft cold rec}; do
            # As it was trained, at temperature 1, and a little cooler, where a micro model slips less.
            agents+=",llm:$run/llm/$stage,llm:$run/llm/$stage?temperature=0.7"
        done
    fi
    deeprec evaluate --dataset "${data[@]}" --agents "$agents" --seed "$seed" --baseline trm --out "$run/evaluation"
    folders+=("$run/evaluation")
done
if [ "${#folders[@]}" -gt 1 ]; then
    deeprec spread "${folders[@]}" --baseline trm --out "$out/spread.md"
    [ "${#llm[@]}" -eq 0 ] || deeprec spread "${folders[@]}" --baseline "llm after SFT" --out "$out/spread-sft.md"
fi
