"""Checks who includes whom against the table of the house.

    python3 tools/checks/includes.py

MAY names for each part of src/ the parts whose headers it may include; a name with a suffix is a single file. A
part may always include itself, and of the public headers those of PUBLIC, or all. docs/decisions/0001 explains the
files that cross a line.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

# Above the engine two of its headers are known: node.h to put an error into a graph, context.h to log.
ABOVE = {"core", "graph/node.h", "graph/context.h"}
HIGH = ABOVE | {"nn", "models", "io"}
MAY = {
    "core": set(),
    "backend": {"core", "ops/op.h", "ops/ops.def"},
    "backend/cpu": {"core", "backend/backend.h", "backend/table.h", "ops/op.h", "ops/ops.def"},
    "backend/cuda": {"core", "backend/backend.h", "backend/plugin.h", "backend/table.h", "ops/op.h", "ops/ops.def"},
    "graph": {"core", "backend/backend.h", "backend/plugin.h", "ops/desc.h", "ops/op.h"},
    "ops": {"core", "graph"},
    "autograd": {"core", "graph", "ops"},
    "io": {"core/alloc.h", "core/error.h", "core/hash.h"},
    "tokenizer": {"core/alloc.h", "core/error.h", "core/hash.h", "core/regex.h", "core/text.h", "io"},
    "nn": ABOVE,
    "models": ABOVE | {"nn", "io"},
    "adapters": HIGH,
    "train": HIGH | {"tokenizer", "adapters", "generate"},
    "generate": HIGH | {"tokenizer", "adapters"},
    "embed": HIGH | {"tokenizer"},
    "cli": set(),
}
# Headers of the public interface that a low part may not know: it would depend on what stands above it.
PUBLIC = {
    "core": {"status", "context", "tensor", "graph"},
    "backend": {"status", "context", "tensor", "ops"},
    "backend/cpu": {"status", "context", "tensor", "ops"},
    "backend/cuda": {"status", "context", "tensor", "ops"},
    "graph": {"status", "context", "tensor", "graph", "ops", "program"},
    "ops": {"status", "context", "tensor", "graph", "ops", "eager"},
    "autograd": {"status", "context", "tensor", "graph", "ops"},
    "io": {"status"},
    "tokenizer": {"status", "tokenizer"},
}
# Headers of systems and libraries that stay in one place.
KEPT_IN = [
    (re.compile(r"cuda|cublas|cudnn|nvrtc|nccl"), "backend/cuda"),
    (re.compile(r"immintrin|x86intrin|arm_neon|cpuid"), "backend/cpu"),
    (re.compile(r"cblas|openblas|dnnl"), "backend/cpu"),
    (re.compile(r"cJSON"), "io"),
    (re.compile(r"pcre2"), "core"),
    (re.compile(r"utf8proc"), "tokenizer"),
    (re.compile(r"cairo"), "train"),
    (re.compile(r"libfyaml"), "cli"),
]
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.M)


def part_of(relative):
    pieces = relative.split("/")
    return "/".join(pieces[:2]) if pieces[0] == "backend" and len(pieces) > 2 else pieces[0]


def fault(path, part, kind, name):
    if kind == "<":
        for pattern, places in KEPT_IN:
            if pattern.search(name) and part not in ([places] if isinstance(places, str) else places):
                return f"<{name}> belongs to {places}"
        return None
    if name.startswith("taper/"):
        known = PUBLIC.get(part)
        stem = name[len("taper/"):-len(".h")]
        return None if known is None or stem in known else f"{part} stands below taper/{stem}.h"
    if "/" not in name and (path.parent / name).exists():
        return None
    if not (SRC / name).exists():
        return "there is no such file under src/"
    target = part_of(name)
    if target == part or name in MAY[part] or target in MAY[part]:
        return None
    return f"{part} may not include {target}"


def main():
    faults = []
    for path in sorted(path for kind in ("*.[ch]", "*.cu", "*.cuh", "*.def") for path in SRC.rglob(kind)):
        relative = path.relative_to(SRC).as_posix()
        part = part_of(relative)
        if part not in MAY:
            faults.append(f"src/{relative}: {part} has no line in the table of {Path(__file__).name}")
            continue
        text = path.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            why = fault(path, part, *match.groups())
            if why:
                line = text.count("\n", 0, match.start()) + 1
                faults.append(f"src/{relative}:{line}: {match.group(2)}: {why}")
    print("\n".join(faults) or "includes: as the table says")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
