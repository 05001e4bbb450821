#!/bin/sh
# All measurements on one GPU, within ten minutes: see accelerator.py. Arguments go to it; PYTHON is the interpreter.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd) || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
exec timeout 600 "${PYTHON:-python3}" "$root/benchmarks/accelerator.py" "$@"
