#!/bin/sh
# Runs each fuzz target of a build for some seconds; inputs that were worth keeping stay in its corpus folder.
#
#   tools/fuzz.sh BUILD_DIR SECONDS
set -eu
build=$1
seconds=$2
for target in "$build"/tests/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    corpus=$build/corpus/$(basename "$target")
    mkdir -p "$corpus"
    echo "== $(basename "$target"), $seconds s"
    "$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=0 -verbosity=0 \
        -artifact_prefix="$corpus/../" "$corpus"
done
