"""Checks that libtaper exports what the public headers declare with TP_API: all of it, and nothing else.

    TAPER_BUILD=build python3 tools/checks/symbols.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECLARATION = re.compile(r"\b(?:TP_API|TP_EAGER\(\w+\))\s[^;{]*?\b(tp_\w+)\s*\([^;{]*\);")
COMMENT = re.compile(r"/\*.*?\*/", re.S)
# What the loader and the sanitizers put into every library.
FOREIGN = re.compile(r"_(?:init|fini|_bss_start|edata|end)$|__(?:asan|ubsan|tsan|odr|sancov|start_|stop_)|_ZTI|_ZTS")


def declared():
    names = set()
    for header in sorted((ROOT / "include" / "taper").glob("*.h")):
        text = COMMENT.sub("", header.read_text(encoding="utf-8"))
        text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        names |= set(DECLARATION.findall(text))
    return names


def exported(library):
    lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in lines.splitlines()}


def main():
    library = Path(os.environ.get("TAPER_BUILD", ROOT / "build")) / "libtaper.so"
    if not shutil.which("nm"):
        print("nm is missing")
        return 77
    wanted, found = declared(), {name for name in exported(library) if not FOREIGN.match(name)}
    faults = [f"{name}: exported, but no public header declares it" for name in sorted(found - wanted)]
    faults += [f"{name}: declared, but not exported" for name in sorted(wanted - found)]
    faults += [f"{name}: exported names begin with tp_" for name in sorted(found) if not name.startswith("tp_")]
    print("\n".join(faults) or f"symbols: {len(found)} names, as declared")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
