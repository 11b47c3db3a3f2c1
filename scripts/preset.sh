# Sourced by the scripts of the paper's workflow: settings from a preset file and flags, and the `deeprec` command.
#
#   --preset NAME       a file of scripts/presets, or any other (also PRESET=NAME); quickstart by default
#   --out DIR           where stages and results are written; a folder in one that exists
#   --retriever URL     retrieve by a server instead of in the process (also RETRIEVER=URL)
#   --record FILE       keep every retrieval in FILE
#   --replay FILE       answer every retrieval from FILE, without a trained TRM, and fail on one that is not there
#
# usage: source preset.sh "$@"; afterwards the arguments that are left are in "${rest[@]}", the data set in "${data[@]}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() { echo "$(basename "$0"): $*; --help says more" >&2; exit 2; }

# The comment on top of the script that was called, and the flags above.
usage() {
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    printf '\nFlags of all scripts of the workflow:\n'
    awk 'NR > 2 && /^#   --/ { sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"
}

# The path of a file or folder to be, in a folder that exists.
absolute() { echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; }

rest=() record=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --preset | --out | --retriever | --record | --replay)
            [ $# -ge 2 ] || fail "expected a value after $1"
            case "$1" in
                --preset) PRESET="$2" ;;
                --out) OUT="$(absolute "$2")" ;;
                --retriever) RETRIEVER="$2" ;;
                --record) record="record:$(absolute "$2")" ;;
                --replay) record="replay:$(absolute "$2")" ;;
            esac
            shift 2
            ;;
        *) rest+=("$1"); shift ;;
    esac
done
preset="$root/scripts/presets/${PRESET:-quickstart}.env"
[ -f "$preset" ] || preset="${PRESET:-}"
[ -f "$preset" ] || fail "expected a preset out of $(cd "$root/scripts/presets" && ls -m -- *.env) or a file, got $PRESET"
source "$preset"
case "$OUT" in /*) ;; *) OUT="$root/$OUT" ;; esac
data=(--dataset "$DATASET")
[ -z "$CATEGORY" ] || data+=(--category "$CATEGORY")
case "$record" in
    replay:*) [ -z "$RETRIEVER" ] || fail "--replay answers alone; leave out --retriever"; RETRIEVER="$record" ;;
    record:*) RETRIEVER="$record${RETRIEVER:+@$RETRIEVER}" ;;
esac
[ -z "$RETRIEVER" ] || export DEEPREC_RETRIEVER="$RETRIEVER"

# Makes the `deeprec` command available; to be called once the arguments are known to be good.
ready() {
    command -v deeprec >/dev/null && return
    source "$root/scripts/setup_env.sh"
    cd "$root" && setup_env "trm,agents,serve" && cd - >/dev/null
}

# Trains as the preset says, in one process or in NUM_PROCESSES of them, one a GPU.
train() {
    cd "$root"
    local settings=("$LLM_PRESET" "${data[@]}" --out "$OUT" --game.reward "$TRAIN_REWARD" "$@")
    [ "$NUM_PROCESSES" -gt 1 ] || exec deeprec train llm "${settings[@]}"
    exec torchrun --standalone --nproc-per-node "$NUM_PROCESSES" agents/llm_grpo.py "${settings[@]}"
}
