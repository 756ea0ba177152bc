#!/usr/bin/env bash
# Measures this code on the accelerator that JAX finds, in ten minutes; all results in one file.
#
#   experiments/benchmarks/on_gpu.sh RESULTS.tar.gz [COPY_OF_THE_PUBLISHED_CODE]
#
# Wants an environment with '.[all,cuda]', whose python PYTHON names, and in PEAK_TFLOPS the peak of
# the device in bfloat16. Each part has a limit of time of its own, and none stops the others.
# SMALL=yes tries the script on a CPU, with a network of one block.
set -uo pipefail

RESULTS=$(realpath -m "${1:?wanted: on_gpu.sh RESULTS.tar.gz [COPY_OF_THE_PUBLISHED_CODE]}")
PUBLISHED=${2:+--official-code=$(realpath -m "$2")}
PYTHON=$(command -v "${PYTHON:-python}") || { echo "there is no ${PYTHON:-python}"; exit 2; }
cd "$(dirname "$0")/../.." || exit 2
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT

BATCH=128 LARGER=512 MINUTES=2
SPEED=("$PYTHON" -m experiments.benchmarks.speed --out="$OUT" --peak_tflops="${PEAK_TFLOPS:-989}")
TRAIN=(--config.model.dtype=bfloat16 --config.train.batch_size=256 --config.train.steps=20000)
DRAWN=64
if [ "${SMALL:-no}" = yes ]; then
  BATCH=1 LARGER=2 MINUTES=1 DRAWN=4
  SPEED+=(--channels=64 --num_blocks=1 --rounds=1)
  TRAIN=(--config.train.batch_size=4 --config.train.log_every=5)
fi

part() { # NAME SECONDS COMMAND...: runs it within its time; what it prints goes into NAME.log
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  timeout --kill-after=20 "$limit" "$@" >"$OUT/$name.log" 2>&1
  echo "$name: exit code $?, $((SECONDS - began)) s of at most $limit" | tee -a "$OUT/summary.txt"
}

nvidia-smi >"$OUT/nvidia-smi.log" 2>&1
part device 30 "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())'

# Steps in float32 and bfloat16, with cuDNN's attention, and the published code's; their memory,
# share of the peak, and a step of sampling.
cp docs/benchmarks.md "$OUT"
part speed 240 "${SPEED[@]}" --workdir="$OUT/speed" --batch_size=$BATCH --modes=matmuls $PUBLISHED
part larger 80 "${SPEED[@]}" --workdir="$OUT/larger" --batch_size=$LARGER --modes='matmuls, bfloat16$'

# The batch that fits, by the memory of the same mode at both sizes.
part fits 10 "$PYTHON" - "$OUT" $BATCH $LARGER <<'END'
import json, sys

out, small, large = sys.argv[1], *map(int, sys.argv[2:])
runs = [json.load(open(f"{out}/{name}/bench.json")) for name in ("speed", "larger")]
name = runs[1]["steps"][0]["name"]
needs = [next(row["need"] for row in run["steps"] if row["name"] == name) for run in runs]
each = (needs[1] - needs[0]) / (large - small)
fits = small + (runs[0]["memory"] - needs[0]) / each
print(f"{name}: {each / 2**20:.1f} MiB an image, so that {fits:.0f} images fit")
END

# Real training, stopped after its minutes as a user stops it; then the bound and samples.
part train $((MINUTES * 60)) "$PYTHON" -m experiments.photos --workdir="$OUT/run" "${TRAIN[@]}"
part evaluate 60 "$PYTHON" -m experiments.evaluate --workdir="$OUT/run" --repeats=1
part sample 40 "$PYTHON" -m experiments.sample --workdir="$OUT/run" --n=$DRAWN --distances

rm -rf "$OUT/run/checkpoints"
tar -czf "$RESULTS" -C "$OUT" . && echo "$RESULTS holds what was measured"
