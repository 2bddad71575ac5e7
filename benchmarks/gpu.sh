#!/usr/bin/env bash
# What a GPU must show, in at most eight minutes: tests marked gpu, the defense's speed, and one
# seed of Table I at the paper's size as far as time goes. Run it in the repository's root, with
# MNIST in DATA_ROOT. `DEVICE=cpu PRESET=cpu benchmarks/gpu.sh` is a dry run.
set -uo pipefail
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
end=$((SECONDS + ${LIMIT:-480}))
failed=0

# Runs a command for at most that many of the seconds that are left.
within() {
    local left=$((end - SECONDS))
    timeout "$(($1 < left ? $1 : left > 1 ? left : 1))" "${@:2}" || { failed=1; echo "failed: ${*:2}"; }
}

within 120 "$python" -m pytest -n 0 -q -m gpu tests/defenses/adversarial_noise/test_gpu.py
within 120 "$python" benchmarks/adversarial_noise.py --seconds 1 --device "$device" \
    --out "results/bench-adversarial-noise-$device.jsonl"
within 240 "$(dirname "$python")/oneway" reproduce table1 --data mnist --preset "${PRESET:-paper}" \
    --seed 0 --device "$device" --data-root "${DATA_ROOT:-data}" --out results
exit "$failed"
