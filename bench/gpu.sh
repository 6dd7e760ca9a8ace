#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell, in one command:
#
#   bench/gpu.sh FOLDER [SECONDS [MEASURING]]     seconds in all [600], and of them for measuring the model [420]
#
# What there is no time for is left out, and says so.
#
#   FOLDER/measured-*.json    the model in many forms: bench/measure.py
#   FOLDER/service-gpu.json   the service under load and fire, requests replayed as CUDA graphs: bench/serve_load.py
#   FOLDER/tests.txt          the tests that need a GPU; last, since they would disturb what is timed
#
# Nothing is installed and no network is needed; bench/README.md says what must be there. MODEL and DATASET stand for
# another checkpoint and its data.
set -uo pipefail
if [ -z "${1:-}" ]; then
    echo "usage: bench/gpu.sh FOLDER [SECONDS [MEASURING]]" >&2
    exit 2
fi
folder=$(realpath -m "$1")
seconds=${2:-600}
measuring=${3:-420}
model=${MODEL:-synthetic:full}
dataset=${DATASET:-synthetic}
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$folder"
left() { echo $((seconds - SECONDS)); }

"$python" bench/measure.py "$folder" --model_path "$model" --dataset_path "$dataset" --budget_s "$measuring"
measured=$?
timeout "$(left)" "$python" bench/serve_load.py --seconds 10 --hostile 500 --record "$folder/service-gpu.json" \
    --server="--model_path $model --data_config fourier_gr1_arms_only --precision bf16 --cuda_graph on_demand"
served=$?
tested=0
if (($(left) > 20)); then
    OMP_NUM_THREADS=1 timeout "$(left)" "$python" -m pytest -q -n 8 -p no:cacheprovider tests/gpu >"$folder/tests.txt"
    tested=$?
    tail -n 3 "$folder/tests.txt"
fi
echo "measured: $measured, served: $served, tested: $tested (0 is good, 124 is out of time); all in $SECONDS s"
exit $((measured || served || tested))
