#!/bin/sh
# PEFT must read our adapters as we mean them: for each golden model, an adapter written by taper and its logits,
# then PEFT's logits of the same files.      tests/peft/run.sh PEFT_EXPORT OUT [VENV]
set -eu
cd "$(dirname "$0")/../.."
export_program=$1 out=$2 venv=${3:-build/golden-venv}
[ -x "$venv/bin/python" ] || { echo "peft: no $venv: run make golden first" >&2; exit 2; }
for model in tests/golden/models/*/; do
    name=$(basename "$model")
    "$export_program" "$model" "$out/$name"
    printf '%s: ' "$name"
    "$venv/bin/python" tests/golden/adapter_check.py "$model" "$out/$name/adapter" "$out/$name/logits.safetensors"
done
