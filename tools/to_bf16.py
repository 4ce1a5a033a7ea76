#!/usr/bin/env python3
"""Round the f32 tensors of a safetensors file to bf16 (to nearest, ties to even); others stay as they are.

    to_bf16.py IN.safetensors OUT.safetensors
"""

import array
import json
import os
import sys


def round_to_bf16(data):
    """bf16 is the upper half of an f32: add just under half a unit of the lower half, then cut it off."""
    words = array.array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    halves = array.array("H", (word >> 16 | 0x40 if word & 0x7FFFFFFF > 0x7F800000  # a NaN stays one
                               else word + 0x7FFF + (word >> 16 & 1) >> 16 for word in words))
    if sys.byteorder == "big":
        halves.byteswap()
    return halves.tobytes()


def convert(source):
    """The bytes of the new file for those of the old one."""
    size = int.from_bytes(source[:8], "little")
    old = json.loads(source[8 : 8 + size])
    new, parts, offset = {}, [], 0
    if "__metadata__" in old:
        new["__metadata__"] = old.pop("__metadata__")
    for name, entry in sorted(old.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        data, dtype = source[8 + size + begin : 8 + size + end], entry["dtype"]
        if dtype == "F32":
            data, dtype = round_to_bf16(data), "BF16"
        new[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    header = json.dumps(new, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


def main():
    if len(sys.argv) != 3:
        raise SystemExit("usage: to_bf16.py IN.safetensors OUT.safetensors")
    with open(sys.argv[1], "rb") as file:
        converted = convert(file.read())
    partial = sys.argv[2] + ".partial"
    with open(partial, "wb") as file:
        file.write(converted)
    os.replace(partial, sys.argv[2])
    print(f"{sys.argv[2]}: {len(converted)} bytes")


if __name__ == "__main__":
    main()
