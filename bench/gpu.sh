#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell, in one command:
#
#   bench/gpu.sh FOLDER [SECONDS [MEASURING]]     seconds in all [600], and of them for measuring the model [555]
#
# What there is no time for is left out, and says so.
#
#   FOLDER/measured-*.json    the model in many forms: bench/measure.py
#   FOLDER/compile-cache.bin  what was compiled; CACHE=FILE brings one from another run
#   FOLDER/service-gpu.json   the service under load and fire, requests replayed as CUDA graphs: bench/serve_load.py
#   FOLDER/tests.txt          the tests that need a GPU; last, since they would disturb what is timed
#
# Nothing is installed and no network is needed; bench/README.md says what must be there. MODEL and DATASET stand for
# another checkpoint and its data. Compilers keep what they make where the next command finds it, which FOLDER may not be.
set -uo pipefail
if [ -z "${1:-}" ]; then
    echo "usage: bench/gpu.sh FOLDER [SECONDS [MEASURING]]" >&2
    exit 2
fi
folder=$(realpath -m "$1")
seconds=${2:-600}
measuring=${3:-555}
model=${MODEL:-synthetic:full}
dataset=${DATASET:-synthetic}
[ -z "${CACHE:-}" ] || CACHE=$(realpath -m "$CACHE")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
compiled=${XDG_CACHE_HOME:-$HOME/.cache}/gr00t_trt/compile
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$compiled/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$compiled/triton}
mkdir -p "$folder"
[ -z "${CACHE:-}" ] || cp "$CACHE" "$folder/compile-cache.bin" || exit 2
left() { echo $((seconds - SECONDS)); }

"$python" bench/measure.py "$folder" --model_path "$model" --dataset_path "$dataset" --budget_s "$measuring" \
    --cache "$folder/compile-cache.bin"
measured=$?
served="left out" tested="left out"
if (($(left) > 45)); then
    timeout "$(left)" "$python" bench/serve_load.py --seconds 10 --hostile 500 --record "$folder/service-gpu.json" \
        --server="--model_path $model --data_config fourier_gr1_arms_only --precision bf16 --cuda_graph on_demand"
    served=$?
fi
if (($(left) > 20)); then
    OMP_NUM_THREADS=1 timeout "$(left)" "$python" -m pytest -q -n "$(($(nproc) < 8 ? $(nproc) : 8))" \
        -p no:cacheprovider tests/gpu >"$folder/tests.txt"
    tested=$?
    tail -n 3 "$folder/tests.txt"
fi
echo "measured: $measured, served: $served, tested: $tested (0 is good, 124 is out of time); all in $SECONDS s"
for outcome in "$measured" "$served" "$tested"; do
    case $outcome in 0 | 124 | "left out") ;; *) exit 1 ;; esac
done
