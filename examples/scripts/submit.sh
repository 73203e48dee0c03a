#!/usr/bin/env bash
# Submits a recipe to a running Ray cluster (on a machine without a GPU: `ray start --head --num-gpus 1`).
#
#   examples/scripts/submit.sh RECIPE RUN_DIR [further gagpo train flags]
#
# RECIPE is a file, or the name of one in examples/recipes. RAY_JOB_ADDRESS names the cluster's dashboard.
set -euo pipefail
recipe=${1:?first argument: recipe, a file or the name of one in examples/recipes}
run_dir=$(realpath -m "${2:?second argument: folder of the run}")
shift 2
[[ -f $recipe ]] || recipe="$(dirname "$0")/../recipes/$recipe"
[[ -f $recipe ]] || { echo "there is no recipe ${recipe##*/}; give a file or a name in examples/recipes" >&2; exit 2; }

# The job runs in a folder of its own, so files named here need absolute paths.
arguments=()
for argument in "$@"; do
    [[ ${previous:-} == --*.plugin && -f $argument ]] && argument=$(realpath "$argument")
    arguments+=("$argument")
    previous=$argument
done

exec ray job submit --address "${RAY_JOB_ADDRESS:-http://127.0.0.1:8265}" -- \
    "$(command -v python)" -m openrlhf_gagpo.cli.train \
    --config "$(realpath "$recipe")" \
    --run_dir "$run_dir" \
    "${arguments[@]}"
