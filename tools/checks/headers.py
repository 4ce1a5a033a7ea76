"""Checks that every public header compiles alone, as C11 and as C++17.

    CC=gcc python3 tools/checks/headers.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'include'}"]


def languages():
    cc = os.environ.get("CC", "cc")
    cxx = "clang++" if "clang" in Path(cc).name else "g++"
    yield "C11", [cc, "-std=c11", "-xc", "-Wstrict-prototypes"]
    if shutil.which(cxx):
        yield "C++17", [cxx, "-std=c++17", "-xc++"]
    else:
        print(f"{cxx} is missing: headers are not compiled as C++17")


def main():
    faults = 0
    for name, compiler in languages():
        for header in sorted((ROOT / "include" / "taper").glob("*.h")):
            # Twice: the second inclusion must be empty.
            source = f'#include "taper/{header.name}"\n' * 2
            done = subprocess.run([*compiler, *FLAGS, "-"], input=source, capture_output=True, text=True)
            if done.returncode:
                faults += 1
                print(f"include/taper/{header.name} as {name}:\n{done.stderr}")
    print(f"headers: {faults} do not compile alone" if faults else "headers: each compiles alone")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
