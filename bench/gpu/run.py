"""Taper on one GPU beside PyTorch, transformers and PEFT: both sides row by row, in turn, in one run.

    python3 bench/gpu/run.py [--only micro,train,generate,growth] [--models 0.5b,1.5b,7b] [--bin DIR] [--out DIR]

Models with random weights are made in a work folder (--work; a temporary one unless named). OUT/gpu.json has all that
was measured, OUT/gpu.md the tables, OUT/growth.svg and .png the plots; parts that an earlier run into OUT measured are
kept. `--only report` writes tables and plots again. A wrong result (an operation that differs from the CPU's,
losses that differ from PyTorch's) or a failure of ours makes the run fail. The last measurements are skipped, and
named as such, where --minutes are over. --small tries the programs out on the CPU, without peers. Standard library
only; the peers live in an environment of their own (tools/bench-peers.sh), or in this interpreter's.
"""

import argparse
import datetime
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other benchmarks' modules

import make_model  # noqa: E402
import plots  # noqa: E402
import rows  # noqa: E402
import sides  # noqa: E402
import tables  # noqa: E402
from bench import write_values  # noqa: E402

PARTS = ("micro", "train", "generate", "growth")
ROOT = rows.HERE.parent.parent
# Seconds, about, that a peer's measurement takes: where fewer are left it does not begin.
OPERATION, COMPILED_OPERATION, STEPS, COMPILATION, GENERATION = 3, 15, 8, 75, 75


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, or report")
    parser.add_argument("--models", default="0.5b,1.5b,7b")
    built = ROOT / "build" / "bench"
    parser.add_argument("--bin", type=Path, default=built, help="where the programs are")
    parser.add_argument("--out", type=Path, default=built / "gpu")
    parser.add_argument("--work", type=Path, help="where models are made, and kept")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="taper alone")
    parser.add_argument("--small", action="store_true")
    a = parser.parse_args(argv)
    a.only, a.models = a.only.split(","), a.models.split(",")
    if a.small:
        a.device, a.peers, a.models = "cpu", False, ["tiny"]
    return a


class Scratch:
    """Models, adapters and ids, each made at its first use."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def model(self, name):
        folder = self.folder / name
        if not (folder / "complete").exists():
            print(f"making {name}", file=sys.stderr, flush=True)
            make_model.make_model(self.options(name), folder)
            (folder / "complete").touch()
        return folder

    def options(self, name, rank=8):
        sizes = [f"--{key.replace('_', '-')}={size}" for key, size in rows.MODELS[name].items() if key != "tie"]
        tie = "--tie" if rows.MODELS[name]["tie"] else "--no-tie"
        return make_model.parse(["unused", *sizes, tie, f"--rank={rank}"])

    def adapter(self, name, rank):
        folder = self.model(name) / f"adapter-{rank}"
        if not folder.exists():
            make_model.make_adapter(self.options(name, rank), folder)
        return folder

    def ids(self, name, *shape):
        """A folder with ids.npy."""
        folder = self.folder / f"ids-{name}-{'x'.join(map(str, shape))}"
        if not folder.exists():
            folder.mkdir(parents=True)
            count = 1
            for size in shape:
                count *= size
            generator, vocab = random.Random(str(folder.name)), rows.MODELS[name]["vocab"]
            write_values(folder / "ids.npy", [generator.randrange(vocab) for _ in range(count)], shape)
        return folder


class Run:
    """What was measured so far, written after each row: a run that is stopped leaves what it had."""

    def __init__(self, a, scratch, deadline):
        self.a, self.scratch, self.wrong = a, scratch, []
        self.peers = sides.Peers(deadline) if a.peers else sides.NoPeers()
        self.path = a.out / "gpu.json"
        self.found = json.loads(self.path.read_text()) if self.path.exists() else {}

    def keep(self, part, key, figures):
        self.found.setdefault(part, {})[key] = figures
        if self.peers.facts:
            self.found["peers"] = self.peers.facts
        self.found["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        ours = figures.get("ours", {})
        if "error" in ours:
            self.wrong.append(f"{part} {key}: {ours['error']}")

    def differ(self, key, ours, theirs, tolerance):
        """Whether results lie further apart than the tolerance, of the largest value."""
        apart = max(abs(x - y) for x, y in zip(ours, theirs)) / max(abs(y) for y in theirs)
        if not apart <= tolerance:
            self.wrong.append(f"{key}: differs from the peer by {apart:.2g}, {tolerance:g} is allowed")
        return apart


def say(part, key):
    print(f"{part} {key}", file=sys.stderr, flush=True)


# ---- operations ----


def measure_operations(run):
    ours = sides.Operations(run.a)
    for name in rows.SMALL_OPERATIONS if run.a.small else ours.rows():
        say("micro", name)
        needs = COMPILED_OPERATION if name.split("-")[0] in ("lora", "softmax", "rms_norm") else OPERATION
        peer = run.peers.ask(needs, work="operation", name=name) if name != "copy" else {}
        run.keep("micro", name, {"ours": ours.measure(name), "peer": peer})
    for names in rows.SMALL_OVERHEADS if run.a.small else [names for _, names, _ in tables.OVERHEAD_GOALS]:
        say("overhead", names)
        peer = run.peers.ask(OPERATION, work="overhead", names=names)
        run.keep("overhead", names, {"ours": ours.measure(names), "peer": peer})
    ours.close()


# ---- training ----

LOSS_TOLERANCE = 0.005  # of losses about log(vocabulary): what bf16 leaves of two orders of summation
FALL_TOLERANCE = 0.2  # of what the first steps take off the loss: wrong gradients show here


def peer_needs(ways, steps):
    return 10 + sum(STEPS * steps / sides.STEPS + (COMPILATION if way == "compile" else 0) for way in ways)


def ask_training(run, points, ways, steps):
    """The peers' figures of points of one model and adapter, in one request: {way: figures} each, and the loading."""
    left = [way for way in ways if way != "compile" or run.peers.left() > peer_needs(ways, steps)]
    runs = [
        {"ids": str(run.scratch.ids(p.model, p.rows, p.length + 1) / "ids.npy"), "way": way, "steps": steps}
        for p in points for way in left
    ]  # fmt: skip
    model, adapter = run.scratch.model(points[0].model), run.scratch.adapter(points[0].model, points[0].rank)
    request = dict(work="train", model=str(model), adapter=str(adapter), runs=runs)
    found = run.peers.ask(peer_needs(left * len(points), steps), **request)
    if "runs" not in found:
        return [{"ways": {way: found for way in ways}} for _ in points]
    answers = iter(found["runs"])
    skipped = {way: {"skipped": "no time was left to compile"} for way in ways if way not in left}
    return [
        {"load_seconds": found["load_seconds"], "ways": {**{way: next(answers) for way in left}, **skipped}}
        for _ in points
    ]


def train_ours(run, point, steps):
    s = run.scratch
    adapter, inputs = s.adapter(point.model, point.rank), s.ids(point.model, point.rows, point.length + 1)
    return sides.train(run.a, s.model(point.model), adapter, inputs, point.rows * point.length, steps)


def compare_losses(run, key, ours, peer):
    if "losses" not in ours:
        return
    for way, figures in peer["ways"].items():
        if "losses" not in figures:
            continue
        mine, theirs = ours["losses"], figures["losses"]
        falls = [losses[0] - losses[-1] for losses in (mine, theirs)]
        figures["apart"] = run.differ(f"losses of {key}, {way}", mine, theirs, LOSS_TOLERANCE)
        figures["falls_apart"] = run.differ(f"fall of the loss of {key}, {way}", falls[:1], falls[1:], FALL_TOLERANCE)


def measure_training(run):
    for point in rows.SMALL_TRAINING if run.a.small else rows.TRAINING:
        if point.model not in run.a.models:
            continue
        say("train", point.key)
        (peer,) = ask_training(run, [point], point.ways, sides.STEPS)
        ours = train_ours(run, point, sides.STEPS)
        compare_losses(run, point.key, ours, peer)
        run.keep("train", point.key, {"ours": ours, "peer": peer, "model": point.model, "length": point.length})
    first = (rows.SMALL_TRAINING if run.a.small else rows.TRAINING)[0]
    if first.model in run.a.models:
        measure_cold_start(run, first)


def measure_cold_start(run, point):
    say("train", "cold start")
    s = run.scratch
    inputs = s.ids(point.model, point.rows, point.length + 1)
    ours = sides.cold_start(run.a, s.model(point.model), s.adapter(point.model, 8), inputs)
    peer = run.found["train"].get(point.key, {}).get("peer", {})
    figures = peer.get("ways", {}).get("eager", {})
    theirs = {}
    if "first_seconds" in figures and run.peers.facts:
        load, started = peer["load_seconds"], run.peers.facts["start_seconds"]
        theirs = {"seconds": started + load + figures["first_seconds"], "load_seconds": load}
    run.keep("cold", point.model, {"ours": ours, "peer": theirs})


# ---- generation ----

LOGIT_TOLERANCE = 0.09  # of the largest logit: many layers of bf16


def measure_generation(run):
    s = run.scratch
    for name in ["tiny"] if run.a.small else rows.GENERATION:
        if name not in run.a.models:
            continue
        say("generate", name)
        start = s.ids(name, rows.START_LENGTH)
        long = s.ids(name, 256 if run.a.small else rows.PROMPT_LENGTH)
        with_prompt = run.a.small or name == rows.PROMPT_MODEL
        logits = s.folder / f"logits-{name}.npy"
        request = dict(
            work="generate", model=str(s.model(name)), ids=str(start / "ids.npy"), tokens=rows.NEW_TOKENS,
            logits=str(logits),
            prompt=str(long / "ids.npy") if with_prompt else None, ways=["dynamic", "static"],
        )  # fmt: skip
        peer = run.peers.ask(GENERATION, **request)
        ours = sides.generate(run.a, s.model(name), start, rows.NEW_TOKENS)
        found = ours.pop("logits", None)
        if found and "ways" in peer:
            peer["apart"] = run.differ(f"logits of {name}", found, sides.read_floats(logits), LOGIT_TOLERANCE)
        run.keep("generate", name, {"ours": ours, "peer": peer})
        if with_prompt:
            ours = sides.prompt(run.a, s.model(name), long)
            seconds = {"seconds": peer["prompt_seconds"]} if "prompt_seconds" in peer else {}
            run.keep("prompt", name, {"ours": ours, "peer": seconds})


# ---- growth ----

GROWTH_STEPS = 3


def measure_growth(run):
    for series, points in (rows.SMALL_GROWTH if run.a.small else rows.GROWTH).items():
        points = [p for p in points if p.model in run.a.models]
        kinds = sorted({(p.model, p.rank) for p in points})
        theirs = {}
        for model, rank in kinds:  # one loading for each
            group = [p for p in points if (p.model, p.rank) == (model, rank)]
            theirs.update(zip((p.key for p in group), ask_training(run, group, ("eager",), GROWTH_STEPS)))
        for p in points:
            say(f"growth of {series}", p.key)
            ours = train_ours(run, p, GROWTH_STEPS)
            run.keep(f"growth-{series}", p.key, {"ours": ours, "peer": theirs[p.key]["ways"]["eager"], **vars(p)})


# ---- the run ----

MEASURE = {
    "micro": measure_operations, "train": measure_training, "generate": measure_generation, "growth": measure_growth,
}  # fmt: skip


def report(found, a):
    (a.out / "gpu.md").write_text(tables.document(found))
    plots.write(found, a.bin / "bench_draw", a.out / "growth")


def check_device(a):
    """Ends the run with one line where the device cannot be opened."""
    program = a.bin / "gpu_ops"
    if not program.exists():
        sys.exit(f"run.py: there is no {program}: make build, or --bin DIR")
    opened = subprocess.run(
        [program, f"device={a.device}", "-"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if opened.returncode != 0:
        sys.exit(f"run.py: {opened.stderr.strip()}")


def main():
    a = parse()
    if any(part in a.only for part in PARTS):
        check_device(a)
    a.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="taper-gpu-") as folder:
        run = Run(a, Scratch(a.work or folder), sides.Deadline(a.minutes))
        try:
            for part in PARTS:
                if part in a.only:
                    MEASURE[part](run)
        finally:
            run.peers.close()
    report(run.found, a)
    print((a.out / "gpu.md").read_text())
    print("\n".join(f"WRONG: {line}" for line in run.wrong))
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
