"""The command on a GPU: what moves between devices, and what can go wrong there.

    python3 tests/cuda/commands.py BUILD

Ends with 77, saying why, where there is no GPU. Standard library only; a full GPU is made through the driver's own
interface.
"""

import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAPER = Path(sys.argv[1]).resolve() / "taper"
MODEL, DATA = ROOT / "models" / "taper-wick", ROOT / "data" / "verses"
TRAIN = ["train", "-m", MODEL, "-d", DATA, "--batch-size", 2, "--max-seq", 128, "--overlong", "truncate", "--rank", 4,
         "--eval-every", 0, "--val-batches", 1, "--seed", 7, "--lr", 1e-3, "--log-every", 1]  # fmt: skip
F32 = ["--base-dtype", "f32"]  # the same numbers on every device: else a bf16 model's activations may be bf16
checks = 0


def taper(*words, env=None):
    """(exit status, all that was printed)"""
    command = [str(TAPER), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=300)
    return done.returncode, done.stdout + done.stderr


def check(truth, what):
    global checks
    checks += 1
    if not truth:
        sys.exit(f"FAIL {what}")


def ends(done, status, pattern, what):
    """The command ended so, and one line says why."""
    check(done[0] == status and re.search(pattern, done[1]), f"{what}: status {done[0]}, expected {status}: {done[1]}")


def losses(out):
    rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return {row["iter"]: row["loss"] for row in rows if row["event"] == "train"}


def same_losses(a, b, what):
    a, b = losses(a), losses(b)
    check(a.keys() == b.keys() and len(a) > 0, f"{what}: steps {sorted(a)} and {sorted(b)}")
    worst = max(abs(a[i] - b[i]) / abs(b[i]) for i in a)
    check(worst < 1e-4, f"{what}: losses differ by {worst:.2g}")
    print(f"{what}: {len(a)} losses within {worst:.1e}")


def train(out, iters, device, *more, env=None):
    return taper(*TRAIN, "-o", out, "--iters", iters, "--device", device, *more, env=env)


def runs_on_either_device(folder):
    """The same losses; and a run that is interrupted goes on on the other device."""
    for device in ("cpu", "cuda"):
        done = train(folder / device, 12, device, *F32, "--save-every", 6)
        check(done[0] == 0, f"training on {device}: {done[1]}")
    same_losses(folder / "cuda", folder / "cpu", "trained on cuda and cpu")
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        out = folder / f"{first}-{second}"
        shutil.copytree(folder / first, out)
        later = sorted(path for path in (out / "checkpoints").iterdir() if path.name > "step-000006")
        check(len(later) > 0, "no checkpoint at the end")
        for path in later:
            shutil.rmtree(path)
        done = train(out, 12, second, *F32, "--save-every", 6, "--resume")
        check(done[0] == 0, f"resuming on {second}: {done[1]}")
        same_losses(out, folder / "cpu", f"begun on {first}, ended on {second}")


def merges_alike(folder):
    for device in ("cpu", "cuda"):
        done = taper("merge", "-m", MODEL, "-a", folder / "cpu", "-o", folder / f"merged-{device}", "--device", device)
        check(done[0] == 0, f"merging on {device}: {done[1]}")
    said = [taper("generate", "-m", folder / f"merged-{device}", "--prompt", "Modern: a small light.\nKing James:",
                  "--max-tokens", 24, "--temperature", 0, "--device", "cpu")[1] for device in ("cpu", "cuda")]  # fmt: skip
    check(said[0] and said[0].splitlines()[:1] == said[1].splitlines()[:1], f"merged models say {said}")


def two_at_once(folder):
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda i: train(folder / f"twin-{i}", 12, "cuda", *F32), range(2)))
    for i, done in enumerate(both):
        check(done[0] == 0, f"two processes on one GPU: {done[1]}")
        same_losses(folder / f"twin-{i}", folder / "cpu", f"process {i} of two on one GPU")


def full_gpu(folder):
    """All but 40 MiB is another process's."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, block, free, total = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_size_t()
    check(cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0, "the driver does not start")
    cuda.cuCtxSetCurrent(context)
    blocks, size = [], 1 << 34
    while size >= 1 << 21:
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        if free.value > size + (40 << 20) and cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(size)) == 0:
            blocks.append(block.value)
        else:
            size //= 2
    done = train(folder / "full", 2, "cuda")
    for address in blocks:
        cuda.cuMemFree_v2(ctypes.c_uint64(address))
    check(done[0] in (1, 4) and "cuda" in done[1].splitlines()[-1], f"a full GPU: status {done[0]}: {done[1]}")
    check(not (folder / "full" / "adapter_model.safetensors").exists(), "a full GPU: half an adapter was written")
    print("a full GPU:", done[1].splitlines()[-1])


def bad_input(folder):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    ends(train(folder / "none", 2, "cuda", env=hidden), 1, r"cuda", "no GPU is visible")
    status, text = taper("devices", env=hidden)
    check(status == 0 and "cuda:0" not in text, f"devices without a GPU: {text}")
    ends(train(folder / "nine", 2, "cuda:9"), 1, r"cuda:9", "a GPU that does not exist")
    ends(train(folder / "limit", 2, "cuda", "--mem-limit", "1MiB"), 4, r"limit", "a limit of 1 MiB")
    overflowing_model(folder / "model")
    done = train(folder / "nan", 2, "cuda", *F32, "--detect-nan", "-m", folder / "model")
    ends(done, 5, r"\(kernel .*is (nan|inf)", "the operation that made a number that is not finite")


def overflowing_model(folder):
    """The model with one matrix of numbers whose sums overflow."""
    shutil.copytree(MODEL, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])["model.layers.0.mlp.up_proj.weight"]
    begin, end = (8 + length + at for at in entry["data_offsets"])
    number = {"F32": struct.pack("<f", 3e38), "BF16": b"\x7f\x7f"}[entry["dtype"]]
    data[begin:end] = number * ((end - begin) // len(number))
    path.unlink()
    path.write_bytes(data)


def main():
    status, text = taper("devices")
    if "cuda:0" not in text or status != 0:
        print("skipped:", text.strip().splitlines()[-1] if text.strip() else "no GPU")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (runs_on_either_device, merges_alike, two_at_once, bad_input, full_gpu):
            part(folder)
    print(f"{checks} checks, 0 faults")


main()
