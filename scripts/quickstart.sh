#!/usr/bin/env bash
# From an empty machine to a table of agents on MovieLens-100K.
#
#   bash scripts/quickstart.sh            the whole run, at most 25 minutes on 2 cores
#   bash scripts/quickstart.sh --fast     every step on fewer users, under 6 minutes
#
# Needs Python 3.11 and a package index. Each step is resumable: run it again after a crash and it goes on where it was.
# The raw data come from a wheel, or from DEEPREC_DATA/ml-100k (GroupLens' layout) if that is set.
# Results lie in runs/quickstart (or runs/quickstart-fast).
set -euo pipefail
cd "$(dirname "$0")/.."
fast="" out="runs/quickstart"
for argument in "$@"; do
    case "$argument" in
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        --fast)
            fast="--fast" out="runs/quickstart-fast"
            # A home of its own: its short-trained TRM must not be taken for the real one later.
            export DEEPREC_HOME="${DEEPREC_HOME:-$HOME/.cache/deeprec}/fast"
            ;;
        *) echo "expected --fast or --help, got $argument" >&2; exit 2 ;;
    esac
done
started=$SECONDS
source scripts/setup_env.sh
setup_env "trm,agents"

step() { printf '\n[%s/5] %s (%ds so far)\n' "$1" "$2" "$((SECONDS - started))"; }
agents="random,popularity,trm,heuristic"
users=$([ -n "$fast" ] && echo 200 || echo all)

step 1 "MovieLens-100K"
deeprec prepare ml-100k
step 2 "the preference-aware TRM"
deeprec train-trm ml-100k $fast
step 3 "the rule agents on the test users"
deeprec evaluate --dataset ml-100k --agents "$agents" --users "$users" --out "$out"
step 4 "the LLM agent: SFT, then GRPO in stages cold and rec"
python agents/llm_grpo.py quickstart --out "$out/llm" $fast
step 5 "the table"
policies="" users=$([ -n "$fast" ] && echo 100 || echo 400)
for stage in sft cold rec; do policies+="${policies:+,}llm:$out/llm/$stage?temperature=0.7"; done
deeprec evaluate --dataset ml-100k --agents "$policies" --users "$users" --out "$out"
deeprec report "$out"

cat <<NEXT

Done in $((SECONDS - started)) s. Three commands to type next (after: source ${VENV:-.venv}/bin/activate):
  deeprec play --env DeepRec-MovieLens100K-v0 --agent heuristic    # watch one episode
  tensorboard --logdir $out                                        # the training curves
  deeprec evaluate --help                                          # put an agent of your own into the table
NEXT
