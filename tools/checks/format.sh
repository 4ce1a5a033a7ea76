#!/bin/sh
# Checks that clang-format would change no C file; with -i it changes them. Releases of clang-format differ in
# details, so another one than the project's is not asked.
set -eu
cd "$(dirname "$0")/../.."
version=14

clang_format=$(command -v clang-format-$version || command -v clang-format) || exit 77
case "$("$clang_format" --version)" in
*"version $version."*) ;;
*)
    echo "clang-format $version is missing"
    exit 77
    ;;
esac
mode="--dry-run --Werror"
[ "${1:-}" != -i ] || mode=-i
find include src tests bench examples -name '*.[ch]' -print0 | xargs -0 "$clang_format" $mode
