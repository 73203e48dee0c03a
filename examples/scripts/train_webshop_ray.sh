#!/usr/bin/env bash
# Submits a WebShop recipe to a running Ray cluster, by default Qwen2.5-1.5B on two GPUs. RECIPE chooses another:
# the files webshop_*.yaml in examples/recipes differ in model, number of GPUs and algorithm.
#
#   gagpo env generate webshop --out data/webshop --products 1000    # or the official files
#   examples/scripts/train_webshop_ray.sh data/webshop runs/webshop [further gagpo train flags]
#   RECIPE=webshop_qwen2.5_7b_8gpu.yaml examples/scripts/train_webshop_ray.sh data/webshop runs/webshop-7b
set -euo pipefail
# A job does not see this shell's variables, so the data folder becomes a flag.
data=$(realpath "${1:?first argument: folder that holds the items_*.json files}")
run_dir=${2:?second argument: folder of the run}
shift 2

exec "$(dirname "$0")/submit.sh" "${RECIPE:-webshop_qwen2.5_1.5b.yaml}" "$run_dir" --env.options "data_dir=$data" "$@"
