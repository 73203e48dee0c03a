#!/usr/bin/env bash
# Submits an ALFWorld recipe to a running Ray cluster, by default Qwen2.5-1.5B on two GPUs. RECIPE chooses another:
# the files alfworld_*.yaml in examples/recipes differ in model, number of GPUs and algorithm.
#
#   alfworld-download                       # or: gagpo env generate alfworld
#   examples/scripts/train_alfworld_ray.sh ~/.cache/alfworld runs/alfworld [further gagpo train flags]
#   RECIPE=alfworld_qwen2.5_7b_8gpu.yaml examples/scripts/train_alfworld_ray.sh ~/.cache/alfworld runs/alfworld-7b
set -euo pipefail
# A job does not see this shell's variables, so the data folder becomes a flag.
data=$(realpath "${1:?first argument: folder that holds json_2.1.1}")
run_dir=${2:?second argument: folder of the run}
shift 2

exec "$(dirname "$0")/submit.sh" "${RECIPE:-alfworld_qwen2.5_1.5b.yaml}" "$run_dir" --env.options "data_dir=$data" "$@"
