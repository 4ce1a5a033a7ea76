"""The two sides of a row: taper's programs, and the peers' process. Each is asked for one measurement at a time; what
goes wrong is a figure that says why: {"error": ...} or {"skipped": ...}."""

import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contestants import Absent, Contestant, Process, peer_python, peers_folder
from rows import HERE, processors

STEPS, WARM_STEPS = 8, 3
HOST_THREADS = 4


class Deadline:
    """Of the whole run. A measurement begins only where it can be expected to end."""

    def __init__(self, minutes):
        self.end = time.monotonic() + 60 * minutes

    def left(self):
        return self.end - time.monotonic()


class Server(Process):
    """A process that answers each line with a line of JSON."""

    def __init__(self, words, threads):
        super().__init__([str(word) for word in words], threads)

    def ask_json(self, order, patience):
        return json.loads(self.ask(order, patience))


class Restarted:
    """What asks a server, which is started at the first question, and again where it ended."""

    server = None

    def close(self):
        if self.server:
            self.server.process.kill()
            self.server.close()
        self.server = None


def peers_python():
    """The interpreter that has PyTorch: of make bench-peers, or this one."""
    try:
        return peer_python(peers_folder(), "torch")
    except Absent:
        return sys.executable


class Peers(Restarted):
    def __init__(self, deadline):
        self.deadline, self.facts = deadline, {}

    def open(self):
        start = time.perf_counter()
        self.server = Server([peers_python(), HERE / "peers.py"], processors())
        self.facts = {**json.loads(self.server.answer()), "start_seconds": time.perf_counter() - start}

    def left(self):
        return self.deadline.left()

    def ask(self, needs, **request):
        """`needs`: seconds, about, that the answer takes."""
        left = self.left()
        if left < needs:
            return {"skipped": f"it needs {needs:.0f} s, {max(left, 0):.0f} were left"}
        try:
            if not self.server:
                self.open()
            return self.server.ask_json(json.dumps(request), left)
        except (Absent, json.JSONDecodeError) as why:
            self.close()
            return {"error": str(why)}


class NoPeers:
    facts = {}

    def left(self):
        return float("inf")

    def ask(self, needs, **request):
        return {"skipped": "the peers were left out"}

    def close(self):
        pass


# ---- taper ----


class Operations(Restarted):
    """gpu_ops, waiting for rows."""

    def __init__(self, a):
        self.words = [a.bin / "gpu_ops", f"device={a.device}", "-"]

    def rows(self):
        """The names of its table."""
        return subprocess.run([self.words[0], "--list"], check=True, capture_output=True, text=True).stdout.split()

    def measure(self, name):
        try:
            if not self.server:
                self.server = Server(self.words, HOST_THREADS)
            return self.server.ask_json(name, 120)
        except (Absent, json.JSONDecodeError) as why:
            self.close()
            return {"error": str(why)}


def read_floats(path):
    """The elements of an f32 .npy file."""
    data = Path(path).read_bytes()
    start = 10 + struct.unpack("<H", data[8:10])[0]
    return list(struct.unpack(f"<{(len(data) - start) // 4}f", data[start:]))


class Model:
    """A contestant of a whole model; `spawned` is when its process was started."""

    def __init__(self, a, work, **keys):
        self.spawned = time.perf_counter()
        words = [str(a.bin / "bench_contestant"), work, f"device={a.device}"]
        self.contestant = Contestant(words + [f"{key}={value}" for key, value in keys.items()], HOST_THREADS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.contestant.close()

    def result(self, name):
        """Of running it once: the first losses of training, the last logits of a prompt."""
        with tempfile.TemporaryDirectory(prefix="taper-bench-") as folder:
            self.contestant.results("lazy", folder)
            return read_floats(Path(folder) / f"{name}.npy")

    def run(self):
        return self.contestant.run("lazy", 1)

    def facts(self):
        words = self.contestant.ask("facts").split()
        return {key: float(value) for key, value in (word.split("=") for word in words)}


def guarded(measure):
    """What the measurement gives, or why it gave nothing."""

    def call(*arguments, **keys):
        try:
            return measure(*arguments, **keys)
        except Absent as why:
            return {"error": str(why)}

    return call


@guarded
def train(a, model, adapter, inputs, tokens, steps=STEPS):
    """The first losses, then the time of each step, and of it the host's own."""
    with Model(a, "train_step", model=model, adapter=adapter, inputs=inputs) as m:
        losses, seconds, host = m.result("losses"), [], []
        for _ in range(steps):
            seconds.append(m.run())
            host.append(m.facts()["host_seconds"])
        facts = m.facts()
    return {
        "losses": losses, "seconds": seconds, "tokens_per_second": tokens / statistics.median(seconds),
        "host_seconds": statistics.median(host), "peak_bytes": facts["peak_bytes"],
        "load_seconds": facts["load_seconds"],
    }  # fmt: skip


@guarded
def cold_start(a, model, adapter, inputs):
    """From the start of the process to the end of the first step, and of it what loading the weights took."""
    with Model(a, "train_step", model=model, adapter=adapter, inputs=inputs) as m:
        m.run()
        return {"seconds": time.perf_counter() - m.spawned, "load_seconds": m.facts()["load_seconds"]}


@guarded
def generate(a, model, inputs, tokens):
    """Tokens a second behind the first, and the logits that the start leads to."""
    with Model(a, "generate", model=model, inputs=inputs, tokens=tokens + 1) as m:
        logits = m.result("logits")
        seconds = [m.run() for _ in range(4)][1:]
        facts = m.facts()
    return {"tokens_per_second": 1 / statistics.median(seconds), "logits": logits, "peak_bytes": facts["peak_bytes"]}


@guarded
def prompt(a, model, inputs):
    with Model(a, "prompt", model=model, inputs=inputs) as m:
        seconds = [m.run() for _ in range(7)][2:]
        return {"seconds": statistics.median(seconds), "peak_bytes": m.facts()["peak_bytes"]}
