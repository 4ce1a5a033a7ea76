#!/usr/bin/env python3
"""Make the golden files: small models, adapters, training runs and operations as PyTorch computes them.

    python3 tests/golden/make_golden.py [VENV] [--only ops|models|train]

The script needs only the standard library. It creates a virtual environment (default
build/golden-venv), installs the versions of requirements.txt there, and runs itself again inside
it. Everything is computed in f32 on one CPU thread from fixed seeds. README.md says what each
file holds.
"""
import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("ops", "models", "train")

# Sets keep one order, and nothing is looked for on a hub.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# The names of the libraries that torch's default Linux build links, as torch itself pins them.
LINKED = """
from importlib.metadata import requires
print(*[r.split(";")[0].strip() for r in requires("torch") if r.startswith("nvidia-")])
"""


def make_venv(folder):
    """Returns the interpreter of a virtual environment that holds the pinned packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)

    def install(*what):
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *what], check=True)

    install("-r", str(HERE / "requirements.txt"))
    # A CPU build of torch imports as it is; the default build first wants the libraries it links.
    if subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode != 0:
        linked = subprocess.run([python, "-c", LINKED], check=True, capture_output=True, text=True)
        install(*linked.stdout.split())
    return python


def make(parts):
    """Runs inside the virtual environment."""
    import golden_common

    golden_common.setup()
    if "ops" in parts:
        import golden_ops

        golden_ops.make(HERE / "ops")
    if "models" in parts:
        import golden_models

        golden_models.make(HERE / "models")
    if "train" in parts:
        import golden_train

        golden_train.make(HERE / "models")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", nargs="?", type=Path, default=HERE.parents[1] / "build" / "golden-venv")
    parser.add_argument("--only", choices=PARTS, help="make one part only")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        make([options.only] if options.only else PARTS)
        return
    python = make_venv(options.venv.resolve())
    again = [str(python), __file__, "--inside"]
    if options.only:
        again += ["--only", options.only]
    sys.exit(subprocess.run(again, env={**os.environ, **ENVIRONMENT}).returncode)


if __name__ == "__main__":
    main()
