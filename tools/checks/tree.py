"""Checks that hold for the whole tree: files of one idea, no path of a particular machine, sound links.

    python3 tools/checks/tree.py
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 650
CODE = ("src", "include", "tests", "bench", "examples")
TEXT = CODE + ("docs", "tools", "cmake", ".ci", "data", "models", "README.md", "CHANGELOG.md", "Makefile", "CMakeLists.txt",
               "CMakePresets.json")
SUFFIXES = {".c", ".h", ".def", ".py", ".sh", ".md", ".txt", ".cmake", ".json", ".yaml", ".css", ".html", ""}
MACHINE = re.compile(r"""(?<![\w.$}/-])/(?:work|farm|root|home|Users)/[\w.]|/tmp/[\w.]+[/.]\d""")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")


def files(names, suffixes):
    for name in names:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts:
                yield path


def too_long():
    for path in files(CODE, {".c", ".h"}):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MOST_LINES:
            yield f"{path.relative_to(ROOT)}: {lines} lines, at most {MOST_LINES}: is it one idea?"


def machine_paths():
    golden = ROOT / "tests" / "golden"
    for path in files(TEXT, SUFFIXES):
        if golden in path.parents and path.suffix == ".json":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: names a path of one machine: {line.strip()[:80]}"


def broken_links():
    for path in files(("README.md", "CHANGELOG.md", "docs", "data", "models", "tests"), {".md"}):
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")) and not (path.parent / target).exists():
                yield f"{path.relative_to(ROOT)}: links to {target}, which is not there"


def main():
    faults = [*too_long(), *machine_paths(), *broken_links()]
    print("\n".join(faults) or "tree: in order")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
