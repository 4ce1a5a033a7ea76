#!/bin/sh
# Installs the Debian packages that a task needs and that are missing, as root or through sudo.
#
#   tools/install-deps.sh build    what compiles and runs taper
#   tools/install-deps.sh test     and its tests
#   tools/install-deps.sh ci       and every check of the continuous integration
#
# With everything installed it does nothing, as any user. On another system it only says what to install.
set -eu

build="gcc libc6-dev cmake ninja-build pkg-config
    libopenblas-openmp-dev libcjson-dev libpcre2-dev libutf8proc-dev libcairo2-dev libfyaml-dev"
test="g++ binutils python3 clang-format libcriterion-dev"
ci="clang libclang-rt-14-dev ccache doxygen"

case "${1:-}" in
build) wanted=$build ;;
test) wanted="$build $test" ;;
ci) wanted="$build $test $ci" ;;
*)
    echo "usage: tools/install-deps.sh build|test|ci" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "this is no Debian system; taper needs what these Debian packages hold:" $wanted >&2
    exit 0
fi

missing=
for package in $wanted; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "as root, run: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi
echo "installing:$missing"
$as_root apt-get update -q
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
