#!/bin/sh
# The tests on a GPU, then the case table under compute-sanitizer where that is installed.
#
#   tests/cuda/run.sh BUILD
#
# Where there is no GPU each says why it skips, and that is no failure.
set -eu
build=$1

run() {
    printf '%s\n' "== $*"
    status=0
    "$@" || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 77 ] || exit "$status"
    [ "$status" -eq 0 ]
}

if ! run "$build/tests/cuda_cases"; then exit 0; fi
run "$build/tests/cuda_engine"
for program in cuda_block cuda_chain cuda_loss cuda_token; do run "$build/tests/$program"; done
run python3 tests/cuda/commands.py "$build"
if ! command -v compute-sanitizer >/dev/null; then
    echo "skipped: compute-sanitizer is not installed"
    exit 0
fi
check() {
    tool=$1
    shift
    run compute-sanitizer --error-exitcode 1 --tool "$tool" "$@"
}

for tool in memcheck racecheck initcheck; do
    for program in cuda_cases cuda_token; do check "$tool" "$build/tests/$program"; done
    check "$tool" "$build/tests/cuda_block" 20
done
# Products of the loss and gradients of many ranks are the library's: what they write by bulk copies initcheck
# does not see, and racecheck finds fault with them. A chain's threads share nothing.
check memcheck "$build/tests/cuda_block"
check memcheck "$build/tests/cuda_chain"
check memcheck "$build/tests/cuda_loss" 300
