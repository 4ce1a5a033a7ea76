"""PyTorch, transformers and PEFT on the same GPU: a process that answers one line of JSON for each that it is sent.

    python3 bench/gpu/peers.py    {"work": "operation", "name": ...}, {"work": "train", ...}, {"work": "generate", ...}

The first line that it writes says what it is, and how long its imports took. Memory is given back behind every answer.
"""

import json
import os
import sys
import time

START = time.perf_counter()
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print is no answer

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import peer_models  # noqa: E402
import peer_ops  # noqa: E402

WORKS = {
    "operation": lambda request: peer_ops.measure(request["name"]),
    "overhead": lambda request: peer_ops.overhead(request["names"].split()),
    "train": peer_models.train,
    "generate": peer_models.generate,
}


def answer(found):
    print(json.dumps(found), file=ANSWERS, flush=True)


def do(request):
    try:
        return WORKS[request["work"]](request)
    except Exception as why:
        return peer_models.failure(why)


def main():
    torch.set_float32_matmul_precision("high")
    transformers.utils.logging.disable_progress_bar()
    torch.zeros(1, device="cuda")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    answer({"versions": versions, "card": torch.cuda.get_device_name(), "ready_seconds": time.perf_counter() - START})
    for line in sys.stdin:
        found = do(json.loads(line))
        torch.compiler.reset()
        peer_models.free()
        answer(found)


if __name__ == "__main__":
    main()
