#!/usr/bin/env bash
# Seconds an epoch: RecBole's SASRec (batch 256, length 20, full softmax) and our recommender, one after the other.
#
#   bash benchmarks/recbole_epoch.sh                                       MovieLens-100K
#   bash benchmarks/recbole_epoch.sh amazon:Industrial_and_Scientific
#
# RecBole lives in an environment of its own (RECBOLE, made if it is not there), for it wants older packages. Ours
# validates by five kinds of preference in each epoch, RecBole only trains here.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
data="${1:-ml-100k}" recbole="${RECBOLE:-runs/recbole}"
folder="$(realpath -m "$recbole")/${data//:/-}"
if [ ! -x "$recbole/bin/python" ]; then
    python -m venv "$recbole"
    "$recbole/bin/pip" install --quiet torch==2.13.0 recbole==1.2.1 'numpy<2' 'pandas<3' 'setuptools<81'
fi
python -m benchmarks.recbole_epoch write "$data" "$folder"
"$recbole/bin/python" benchmarks/recbole_epoch.py train "$folder" 2>&1 | grep --line-buffered -E "epoch [0-9]+ training|Error"
