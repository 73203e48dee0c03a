#!/usr/bin/env bash
# Submits the vault recipe to a running Ray cluster (on a machine without a GPU: `ray start --head --num-gpus 1`).
#
#   gagpo warmstart --env.name vault --out runs/vault-start
#   examples/scripts/train_vault_ray.sh runs/vault-start runs/vault [further gagpo train flags]
set -euo pipefail
model=$(realpath "${1:?first argument: folder of the starting model, made by gagpo warmstart}")
run_dir=$(realpath -m "${2:?second argument: folder of the run}")
shift 2
recipes=$(realpath "$(dirname "$0")/../recipes")

ray job submit --address "${RAY_JOB_ADDRESS:-http://127.0.0.1:8265}" -- \
    "$(command -v python)" -m openrlhf_gagpo.cli.train \
    --config "$recipes/vault_demo.yaml" \
    --actor.model_name_or_path "$model" \
    --run_dir "$run_dir" \
    "$@"
