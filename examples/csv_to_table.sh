#!/usr/bin/env bash
# From two CSV files to a trained agent in the table: prepare, train the recommender, train an agent, compare, look.
#
#   bash examples/csv_to_table.sh log.csv items.csv        log: user_id,item_id,timestamp; items: item_id,title,…
#   STEPS=4000 FAST=--fast bash examples/csv_to_table.sh …  shorter, to see every step work
set -euo pipefail
usage="usage: bash examples/csv_to_table.sh LOG.csv ITEMS.csv"
log="${1:?$usage}" items="${2:?$usage}"
deeprec prepare csv --interactions "$log" --items "$items" --name shop
deeprec train-trm csv:shop ${FAST:-}
deeprec train sb3_ppo --dataset csv:shop --steps "${STEPS:-400000}" --out runs/shop_ppo
deeprec evaluate --dataset csv:shop --agents popularity,trm,heuristic,sb3_ppo:runs/shop_ppo --baseline trm --out runs/shop
deeprec report runs/shop
