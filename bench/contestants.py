"""Contestants as the driver sees them: processes that speak the protocol of contestant.h, each pinned to the same
processors and told the same number of threads. What cannot be had says why (Absent)."""

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ("torch", "mlx", "llama")
# Taper with its plain kernels and nothing fused: what the results of the others can be held against.
REFERENCE = "-lora,-linear_lora,-linear,-add_rms_norm,-silu_mul,-pointwise"
PATIENCE = 300  # seconds that one answer may take, compilation included


class Absent(Exception):
    """There is no such contestant here, or it has no such work."""


class TooSlow(Absent):
    """It gave no answer in time."""


def environment(threads):
    counts = ("TP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **{name: str(threads) for name in counts}, **quiet}


def pin(threads):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peers_folder():
    """Where make bench-peers installs them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PEERS") or cache / "taper" / "peers")


def peer_python(folder, name):
    python = Path(folder) / name / "bin" / "python"
    why = Path(folder) / f"{name}.absent"
    if why.exists():
        raise Absent(why.read_text().strip())
    if not python.exists():
        raise Absent("not installed (make bench-peers)")
    return str(python)


class Process:
    """A process that answers one line for each line that it is sent."""

    def __init__(self, words, threads, extra=None):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**environment(threads), **(extra or {})}, preexec_fn=lambda: pin(threads),
        )  # fmt: skip

    def why(self):
        """The last line on standard error."""
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with status {self.process.returncode}"

    def answer(self, patience=None):
        """A line, unless it takes longer than `patience` seconds: that ends the process."""
        patience, late = PATIENCE if patience is None else patience, threading.Event()
        timer = threading.Timer(patience, lambda: (late.set(), self.process.kill()))
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.process.wait()
            raise TooSlow(f"no answer within {patience:.3g} s") if late.is_set() else Absent(self.why())
        return line.strip()

    def ask(self, order, patience=None):
        try:
            print(order, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass
        return self.answer(patience)

    def peak_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # it ended, and an order was left unread
            pass
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Contestant(Process):
    """A process of one work."""

    def __init__(self, words, threads, extra=None):
        super().__init__(words, threads, extra)
        try:
            word, *rest = self.answer().split()
            if word != "ready":
                raise Absent(" ".join(rest) or word)
        except Absent:
            self.close()
            raise
        self.version, *self.ways = rest

    def results(self, way, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        if self.ask(f"result {way} {folder}") != "done":
            raise Absent("gave no result")

    def run(self, way, times):
        return float(self.ask(f"run {way} {times}"))


class Command:
    """A whole process is the call; it has no result to compare."""

    def __init__(self, words, threads):
        self.words, self.threads, self.version, self.ways = words, threads, None, ["process"]

    def run(self, way, times):
        start = time.perf_counter()
        for _ in range(times):
            done = subprocess.run(
                self.words, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                env=environment(self.threads), preexec_fn=lambda: pin(self.threads), cwd=HERE.parent,
            )  # fmt: skip
            if done.returncode:
                raise Absent((done.stderr.strip().splitlines() or ["failed"])[-1])
        return (time.perf_counter() - start) / times

    def peak_bytes(self):
        return 0

    def close(self):
        pass


def open_command(name, work, threads, options):
    if name not in work.commands:
        raise Absent("no such command")
    places = {"taper": str(options.build / "taper")}
    if name in PEERS:
        places[name] = peer_python(options.peers, name)
    return Command([word.format(**places) if word.startswith("{") else word for word in work.commands[name]], threads)


def open_contestant(name, work, threads, told, options):
    """`told`: keys beside the work's own, for instance inputs."""
    if work.commands:
        return open_command(name, work, threads, options)
    keys = {**work.keys, "threads": threads, **told}
    extra = {}
    if name in PEERS:
        words = [peer_python(options.peers, name), str(HERE / "peers" / f"{name}_peer.py")]
    else:
        words = [str(options.build / "bench" / "bench_contestant")]
    if name == "reference":
        keys["fuse"], extra = REFERENCE, {"TP_ISA": "baseline"}
    return Contestant([*words, work.kind, *(f"{k}={v}" for k, v in keys.items())], threads, extra)


class Machine(Process):
    """The machine's limits, one figure at a time."""

    def __init__(self, threads, options):
        super().__init__([str(options.build / "bench" / "bench_machine"), "--serve", "--threads", str(threads)], threads)
        self.has_bf16 = float(self.ask("bf16")) > 0

    def limit(self, work):
        """The least seconds that a call of the work can take now, and what binds it."""
        bound = []
        if work.flops:
            what = "bf16" if work.dtype == "bf16" and self.has_bf16 else "f32"
            bound.append((work.flops / float(self.ask(what)), f"{what} peak"))
        if work.bytes:
            rate = float(self.ask(f"{work.moves} {int(max(work.bytes, 16384))}"))
            bound.append((work.bytes / rate, "reading" if work.moves == "read" else "copying"))
        return max(bound, default=(0.0, ""))
