#!/bin/sh
# Installs the peers that `make bench` measures beside taper, from PyPI, each into a virtual environment of its own
# outside the tree, so that what one needs does not stand in the way of another.
#
#   tools/bench-peers.sh [torch] [mlx] [llama]      all of them by default
#
# PEERS names the folder (default ${XDG_CACHE_HOME:-$HOME/.cache}/taper/peers), PYTHON the interpreter. The packages
# are those of bench/peers/NAME.txt. A peer that cannot be installed leaves PEERS/NAME.absent, which says why, and
# PEERS/NAME.log; the others go on. llama.cpp is compiled here, for this processor, without its image tools: it takes
# CMake, a C++ compiler and a quarter of an hour on two processors. PyPI's torch for x86 Linux is linked against CUDA and does not start without its libraries, some GB
# that are never used; pip takes a CPU build instead where its configuration offers one.
set -u
cd "$(dirname "$0")/.."
PEERS=${PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/taper/peers}
PYTHON=${PYTHON:-python3}
export CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}"
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

install() { # NAME MODULE
    rm -f "$PEERS/$1.absent"
    { "$PYTHON" -m venv "$PEERS/$1" && "$PEERS/$1/bin/python" -m pip install --no-input -r "bench/peers/$1.txt" &&
        "$PEERS/$1/bin/python" -c "import $2"; } >"$PEERS/$1.log" 2>&1
}

mkdir -p "$PEERS" || exit 1
[ $# -gt 0 ] || set -- torch mlx llama
for peer in "$@"; do
    case $peer in
    torch) module=peft ;;
    mlx) module=mlx_lm ;;
    llama) module=llama_cpp ;;
    *)
        echo "no such peer: $peer" >&2
        exit 2
        ;;
    esac
    echo "$peer: installing into $PEERS/$peer"
    if ! install "$peer" "$module"; then
        grep . "$PEERS/$peer.log" | tail -n 1 >"$PEERS/$peer.absent"
        echo "$peer: absent: $(cat "$PEERS/$peer.absent")"
    fi
done
