#!/usr/bin/env bash
# Everything worth measuring on one GPU, stage by stage.
#
#   benchmarks/gpu_suite.sh [--seconds N] [--smoke] OUT [STAGE...]
#   benchmarks/gpu_suite.sh --list
#
# OUT gets STAGE.json and STAGE.log of each stage, and summary.txt. A stage whose JSON is complete is not run again; kernels go on with the
# first shape that is missing. N: seconds for all stages together (default 780); what is left when they are over is for the next call.
# --smoke: tiny, on any machine (JAX_PLATFORMS=cpu unless it is set): that everything runs, not what it says.
# Environment: PYTHON (default python3), TOKENS (a file of token ids, see gpt2_gpu.py; default: ASSAY_DATA_DIR's tinyshakespeare.txt).
# Exit status: 0 when all stages that were asked for have run to their end, whatever they found.
# Needs jax with CUDA, flax, optax, pytest and this repository; nothing is installed.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$ROOT/kernels:$ROOT/framework:$ROOT/export:$ROOT/plugins${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
KERNELS=$(cd "$ROOT/kernels/assay_kernels" && for op in */bench.py; do echo "kernels-${op%/bench.py}"; done)
DEFAULT="t2 gpt2_124m $KERNELS memory deterministic compile"
SECONDS_IN_ALL=780 SMOKE="" OUT="" STAGES=""

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0"; }

while [ $# -gt 0 ]; do
  case $1 in
    --list) echo "default: $DEFAULT" | tr '\n' ' '; echo; echo "besides: tune; kernels stands for all kernels-OP"; exit 0 ;;
    --seconds) SECONDS_IN_ALL=${2:?--seconds needs a number}; shift ;;
    --smoke) SMOKE=--smoke; export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
    *) if [ -z "$OUT" ]; then OUT=$1; else STAGES="$STAGES $1"; fi ;;
  esac
  shift
done
[ -n "$OUT" ] || { usage >&2; exit 2; }
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
STAGES=$(for stage in ${STAGES:-$DEFAULT}; do if [ "$stage" = kernels ]; then echo "$KERNELS"; else echo "$stage"; fi; done)
export ASSAY_CACHE_DIR="${ASSAY_CACHE_DIR:-$OUT/cache}"
[ -d "$OUT/tuned" ] && export ASSAY_KERNELS_TUNING="${ASSAY_KERNELS_TUNING:-$OUT/tuned}"
cd "$ROOT" || exit 2

is_complete() { # JSON: whether a run of this size came to its end there
  "$PYTHON" - "$1" "$SMOKE" <<'PY'
import json, sys
try:
    found = json.load(open(sys.argv[1]))
except (OSError, ValueError):
    sys.exit(1)
sys.exit(not (found.get("complete") and bool(found.get("smoke")) == bool(sys.argv[2])))
PY
}

results() { # JSON: its result lines
  "$PYTHON" -c 'import json, sys; print("".join(f"    {line}\n" for line in json.load(open(sys.argv[1])).get("results", [])), end="")' "$1" 2>/dev/null
}

gpt2() { # STAGE ARGUMENTS
  local stage=$1
  shift
  "$PYTHON" benchmarks/gpt2_gpu.py "$@" $SMOKE ${TOKENS:+--tokens "$TOKENS"} --json "$OUT/$stage.json"
}

t2() {
  local cache="$OUT/compiled-t2"
  [ -n "$SMOKE" ] && export ASSAY_T2_SMOKE=1
  JAX_COMPILATION_CACHE_DIR="$cache" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 ASSAY_T2_REPORT="$OUT/t2.json" \
    "$PYTHON" -m pytest --noconftest -c /dev/null --rootdir "$ROOT" -p no:cacheprovider -rs -s tests/kernels/gpu
}

tune() {
  local state=0 op
  for op in $("$PYTHON" -c 'import importlib; from assay_kernels.benching import benched
print(*(op for op in benched() if getattr(importlib.import_module(f"assay_kernels.{op}.bench"), "TUNABLE", None)))'); do
    "$PYTHON" -m assay_kernels.tune "$op" --out "$OUT/tuned" --seconds 60 ${SMOKE:+--dry-run} || state=1
  done
  echo "{\"complete\": true, \"smoke\": $([ -n "$SMOKE" ] && echo true || echo false)}" >"$OUT/tune.json"
  return $state
}

limit() { # STAGE: seconds that it may take
  case $1 in
    t2) echo 240 ;;
    kernels-*) # what the other stages are likely to leave, in equal parts
      local each=$(((SECONDS_IN_ALL - 420) / $(echo "$KERNELS" | wc -w)))
      [ $each -lt 45 ] && each=45
      [ $each -gt 300 ] && each=300
      echo $each
      ;;
    gpt2_124m) echo 240 ;;
    tune) echo 600 ;;
    *) echo 180 ;;
  esac
}

stage() { # STAGE: run it; this is a process of its own, under timeout
  case $1 in
    t2) t2 ;;
    kernels-*) "$PYTHON" benchmarks/kernels.py "${1#kernels-}" $SMOKE --json "$OUT/$1.json" ;;
    gpt2_124m) gpt2 "$1" train --compiled "$OUT/compiled" ;;
    memory) gpt2 "$1" memory --compiled "$OUT/compiled" ;;
    deterministic) gpt2 "$1" deterministic --compiled "$OUT/compiled" ;;
    compile) gpt2 "$1" compile --rounds 1 ;;
    tune) tune ;;
    *) echo "no stage $1; --list names them" >&2; return 2 ;;
  esac
}

if [ "${SUITE_STAGE:-}" ]; then
  stage "$SUITE_STAGE"
  exit
fi

began=$(date +%s) all=0 summary=""
for name in $STAGES; do
  left=$((SECONDS_IN_ALL - $(date +%s) + began))
  may=$(limit "$name")
  [ "$may" -le "$left" ] || may=$left
  if is_complete "$OUT/$name.json"; then
    state="complete, from an earlier call"
  elif [ "$may" -lt 15 ]; then
    state="not started, the time is up" all=1
  else
    echo "== $name, at most $may s"
    from=$(date +%s)
    SUITE_STAGE=$name timeout --kill-after=5 "$may" "$0" ${SMOKE:+$SMOKE} "$OUT" >"$OUT/$name.log" 2>&1
    code=$?
    state="$(($(date +%s) - from)) s"
    if ! is_complete "$OUT/$name.json"; then
      state="INCOMPLETE after $state, exit status $code; see $OUT/$name.log" all=1
      [ $code -eq 124 ] && state="$state (time limit)"
      tail -n 5 "$OUT/$name.log" | sed 's/^/    /'
    elif [ $code -ne 0 ]; then
      state="complete after $state; a target was missed or something failed (exit status $code), see $OUT/$name.log"
    else
      state="complete after $state"
    fi
  fi
  echo "$name: $state"
  summary="$summary$name: $state"$'\n'"$(results "$OUT/$name.json")"$'\n'
done
printf '\n%s' "$summary" | grep -v '^$' | tee "$OUT/summary.txt"
exit $all
