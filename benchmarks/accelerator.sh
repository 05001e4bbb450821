#!/bin/sh
# All measurements on one GPU, within ten minutes: see accelerator.py. Arguments go to it; PYTHON is the interpreter.
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
exec timeout 600 "${PYTHON:-python3}" benchmarks/accelerator.py "$@"
