#!/usr/bin/env bash
# Submits a search QA recipe to a running Ray cluster, by default Qwen2.5-3B on two GPUs. RECIPE chooses another: the
# files search_qa_*.yaml in examples/recipes differ in model, number of GPUs, context and algorithm.
#
#   gagpo env generate search_qa --out data/search --level hard    # or official questions and a corpus
#   examples/scripts/train_search_qa_ray.sh data/search runs/search [further gagpo train flags]
#   RECIPE=search_qa_qwen2.5_7b_grpo_8gpu.yaml examples/scripts/train_search_qa_ray.sh data/search runs/search-7b
#
# Passages from a server: examples/scripts/train_search_qa_ray.sh data/search runs/search \
#     --env.options "data_dir=$(realpath data/search)" retriever=http url=http://HOST:8000/retrieve
set -euo pipefail
# A job does not see this shell's variables, so the data folder becomes a flag.
data=$(realpath "${1:?first argument: folder that holds the questions}")
run_dir=${2:?second argument: folder of the run}
shift 2

exec "$(dirname "$0")/submit.sh" "${RECIPE:-search_qa_qwen2.5_3b.yaml}" "$run_dir" --env.options "data_dir=$data" "$@"
