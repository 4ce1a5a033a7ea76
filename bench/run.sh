#!/bin/sh
# Runs every benchmark of a build folder's bench/ and prints the tables of docs/performance.md; the figures as JSON
# go beside the programs. Usage: bench/run.sh [build/bench] [options of the programs]
set -eu
folder=${1:-build/bench}
[ $# -gt 0 ] && shift
for name in lora_lazy_vs_eager chain_lora chain_add softmax_lazy_vs_eager rms_norm_lazy_vs_eager host; do
    "$folder/bench_$name" --markdown --json "$folder/$name.json" "$@"
done
