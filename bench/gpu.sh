#!/usr/bin/env bash
# Everything worth measuring on a fresh GPU machine, in one call; needs torch, av and the other dependencies, no network.
#
#   bench/gpu.sh FOLDER
#
# One record per run goes to FOLDER. Settings, with their defaults:
#   MODEL=synthetic:full  DATASET=synthetic  PRECISION=bf16  ITERATIONS=200
# A run that fails does not stop the others; the exit status is the number of runs that failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bench/gpu.sh FOLDER}
failed=0

measure() {
    local name=$1
    shift
    echo "== $name"
    python3 run_groot_torchtrt.py --model_path "${MODEL:-synthetic:full}" --dataset_path "${DATASET:-synthetic}" \
        --precision "${PRECISION:-bf16}" --benchmark cuda_event --num_iterations "${ITERATIONS:-200}" \
        --warmup_iterations 20 --max_seconds 30 --record "$out/$name.json" "$@" || failed=$((failed + 1))
}

measure plain-inductor --backend inductor --optimisations none
measure restructured-eager --backend eager --loop denoise_loop
measure restructured-inductor-step --backend inductor --loop denoise_step
measure restructured-inductor-loop --backend inductor --loop denoise_loop
measure restructured-eager-graph --backend eager --loop denoise_loop --cuda_graph startup
measure restructured-inductor-graph --backend inductor --loop denoise_loop --cuda_graph startup
if python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch_tensorrt') is None)"; then
    measure plain-torch_tensorrt --backend torch_tensorrt --use_fp32_acc --optimisations none
    measure restructured-torch_tensorrt-loop --backend torch_tensorrt --use_fp32_acc --loop denoise_loop
fi
exit "$failed"
