#!/usr/bin/env bash
# Submits the vault recipe to a running Ray cluster.
#
#   gagpo warmstart --env.name vault --env.options max_steps=30 --episodes 500 --noise 0.55 --steps 130 --out runs/vault-start
#   examples/scripts/train_vault_ray.sh runs/vault-start runs/vault [further gagpo train flags]
set -euo pipefail
model=$(realpath "${1:?first argument: folder of the starting model, made by gagpo warmstart}")
run_dir=${2:?second argument: folder of the run}
shift 2

exec "$(dirname "$0")/submit.sh" vault_demo.yaml "$run_dir" --actor.model_name_or_path "$model" "$@"
