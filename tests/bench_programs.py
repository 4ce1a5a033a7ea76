"""Running the programs of bench/ in tests. Standard library only; TAPER_BUILD names the build directory."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("TAPER_BUILD", ROOT / "build"))
sys.path[:0] = [str(ROOT / "bench" / "gpu"), str(ROOT / "bench")]


def folder_for(case):
    """A folder that is removed when all tests of the class have run."""
    folder = tempfile.TemporaryDirectory(prefix="taper-bench-test-")
    case.addClassCleanup(folder.cleanup)
    return Path(folder.name)


def run(script, *words):
    suppressions = f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0"  # plots go through fontconfig
    command = [str(word) for word in (sys.executable, ROOT / "bench" / script, *words)]
    environment = {"LSAN_OPTIONS": suppressions, **os.environ}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def run_well(script, *words):
    done = run(script, *words)
    if done.returncode:
        raise AssertionError(done.stdout + done.stderr)
    return done
