"""How taper's speed grows with what it is given, beside what the mathematics asks for.

    python3 bench/growth.py [--axis PATTERN] [--with torch,mlx,llama] [--hidden 256] [--layers 4] ...

One axis at a time is doubled, all else kept: sequence length, batch, rank, adapted layers, depth, nodes of a graph,
processes side by side. A point's rate is that of its work, as bench.py measures it. The dashed curve is what taper's best
rate of arithmetic on the axis (of bytes, for generation) would give at each point; the table says by how much time grew
faster than the arithmetic from one point to the next: 1 or less is no surprise. The model is small by default, so that a
run takes some minutes; a larger one is a matter of its sizes. Writes growth.json, growth.md, growth.svg, growth.png.
"""

import argparse
import datetime
import fnmatch
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import bench
import chart
import report
import works
from contestants import Machine, open_contestant, peers_folder

SIZES = dict(hidden=256, layers=4, heads=4, kv_heads=2, ffn=704, vocab=4096)
COLOURS = {"taper": "0.15 0.42 0.70", "torch": "0.78 0.33 0.24", "mlx": "0.35 0.51 0.34", "llama": "0.55 0.40 0.66"}
GREY = "0.5 0.5 0.5"


@dataclass
class Axis:
    name: str
    title: str
    x: str
    points: list  # (x, Work)
    unit: str = "tokens/s"
    processes: bool = False  # x is how many run the work side by side


def doubled(first, last):
    while first <= last:
        yield first
        first *= 2


def axes(m, rank, dtype):
    def step(rows, length, **changes):
        return works.grown_step({**m, "rank": rank, "adapted": m["layers"], **changes}, rows, length, dtype)

    def generated(kind, length):
        return works.generation(kind, "growth", m, length, dtype)

    def deep(layers):
        return step(2, 128, layers=layers, adapted=layers)

    lengths = list(doubled(128, 8192))
    chains = [(10**p, works.add_chain(10**p, "unfused", "eager", fuse="-pointwise")) for p in range(1, 6)]
    return [
        Axis("length", "Training: sequence length", "tokens a row, batch 1", [(n, step(1, n)) for n in lengths]),
        Axis("batch", "Training: batch", "rows of 128 tokens", [(n, step(n, 128)) for n in doubled(1, 16)]),
        Axis("rank", "Training: rank", "rank, 4 rows of 128", [(n, step(4, 128, rank=n)) for n in doubled(4, 256)]),
        Axis("adapted", "Training: adapted layers", f"the last N of {m['layers']}, 4 rows of 128",
             [(n, step(4, 128, adapted=n)) for n in doubled(1, m["layers"])]),
        Axis("depth", "Training: depth", "layers, all adapted, 2 rows of 128", [(n, deep(n)) for n in doubled(1, 16)]),
        Axis("prompt", "Prompt: length", "tokens", [(n, generated("prompt", n)) for n in lengths]),
        Axis("generate", "Generation: context", "tokens of the prompt", [(n, generated("generate", n)) for n in lengths]),
        Axis("graph", "Graph: a chain of additions of [16]", "nodes, recorded anew", chains, "nodes/s"),
        Axis("processes", "Training: processes side by side", "processes, each with all threads; all together",
             [(n, step(4, 128)) for n in doubled(1, 4)], processes=True),
    ]  # fmt: skip


def cost(work):
    """What the mathematics asks of a call."""
    return work.bytes if work.kind == "generate" else work.flops or work.units


# ---- measuring ----


def run_together(contestants, calls):
    """Seconds until all have made so many calls."""
    start = time.monotonic()
    runners = [threading.Thread(target=c.run, args=(c.ways[0], calls)) for c in contestants]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    return time.monotonic() - start


def side_by_side(axis, a):
    """Figures of taper's processes, the numbers of them in turn; a call's seconds are those of all over their calls."""
    most, work = max(n for n, _ in axis.points), axis.points[0][1]
    with tempfile.TemporaryDirectory(prefix="taper-growth-") as scratch:
        told = bench.told_keys(work, Path(scratch), a)
        opened = [open_contestant("taper", work, a.threads[0], told, a) for _ in range(most)]
        try:
            calls = max(bench.warm(c, c.ways[0], a)[1] for c in opened) * 4
            seconds = {n: [] for n, _ in axis.points}
            for _ in range(max(a.turns * a.rounds, 5)):
                for n in seconds:
                    seconds[n].append(run_together(opened[:n], calls) / (n * calls))
        finally:
            for contestant in opened:
                contestant.close()
    return {n: {"taper": {"lazy": {"seconds": s}}} for n, s in seconds.items()}


def join(known, found):
    """Adds the samples of `found` to those of `known`, which lacks whatever went wrong in any of them."""
    known["wrong"].update(found["wrong"])
    for name in set(known["series"]) - set(found["series"]):
        known["wrong"].setdefault(name, "not measured in every turn")
        del known["series"][name]
    for name, ways in known["series"].items():
        for way, figures in ways.items():
            figures["seconds"] += found["series"][name].get(way, {"seconds": []})["seconds"]


def measure_axis(axis, machine, run, a):
    """[{x, units, cost, series}]: the points in turn, so that a disturbance of the machine hits all alike."""
    together = side_by_side(axis, a) if axis.processes else {}
    points = [{"x": x, "units": work.units_of_growth, "cost": cost(work), "wrong": {}} for x, work in axis.points]
    for point in points if together else []:
        point["series"] = together[point["x"]]
    for turn in range(0 if together else a.turns):
        for point, (x, work) in zip(points, axis.points):
            print(f"{axis.name} {x}, turn {turn + 1} of {a.turns}", file=sys.stderr, flush=True)
            # Who is too slow at one point is asked at the others.
            found = bench.measure(work, a.threads[0], machine, {**run, "slow": {}}, a)
            if turn:
                join(point, found)
            else:
                point.update(series=found["series"], wrong=found["wrong"])
    return {"name": axis.name, "title": axis.title, "x": axis.x, "unit": axis.unit, "points": points}


# ---- what the figures say ----


def rates(point, contestant):
    """(low, median, high) of units a second, or None."""
    chosen = report.best(point, contestant)
    if not chosen:
        return None
    low, middle, high = report.quartiles(chosen[1]["seconds"])
    return tuple(point["units"] / t for t in (high, middle, low))


def asked(axis):
    """Rates at taper's best rate of arithmetic: [(x, rate)]."""
    known = [(p, rates(p, "taper")) for p in axis["points"] if rates(p, "taper")]
    best = max((rate[1] / p["units"] * p["cost"] for p, rate in known), default=0)
    return [(p["x"], best * p["units"] / p["cost"]) for p, _ in known]


def excesses(axis):
    """By how much the time of a call grew faster than its arithmetic, from each point to the next."""
    known = [(p, rates(p, "taper")) for p in axis["points"]]
    times = [(p["cost"], p["units"] / rate[1]) for p, rate in known if rate]
    return [t2 / t1 / (c2 / c1) for (c1, t1), (c2, t2) in zip(times, times[1:])]


def axis_table(axis, names):
    lines = [f"\n### {axis['title']}\n", f"| {axis['x']} | " + " | ".join(f"{n}, {axis['unit']}" for n in names)
             + " | taper, share of its best | time / arithmetic, to the next |"]  # fmt: skip
    lines.append("|---" * (len(names) + 3) + "|")
    best, steps = dict(asked(axis)), excesses(axis) + [None]
    for point, excess in zip(axis["points"], steps):
        found = {name: rates(point, name) for name in names}
        cells = ["wrong" if n in point["wrong"] else chart.number_text(found[n][1]) if found[n] else "" for n in names]
        share = f"{100 * found['taper'][1] / best[point['x']]:.0f} %" if found["taper"] else ""
        lines.append(" | ".join([f"| {point['x']:,}", *cells, share, f"{excess:.2f}" if excess else ""]) + " |")
    return lines


def table(run):
    lines = [f"{run['title']}.", ""]
    lines += [f"- {axis['title']}: at most {max(excesses(axis)):.2f}" for axis in run["axes"] if excesses(axis)]
    for axis in run["axes"]:
        measured = [n for n in run["contestants"] if any(rates(p, n) or n in p["wrong"] for p in axis["points"])]
        lines += axis_table(axis, measured)
    lines += [f"\n{name} at {axis['name']} {p['x']}: {why}"
              for axis in run["axes"] for p in axis["points"] for name, why in p["wrong"].items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def panel(axis, names):
    curves = []
    for name in names:
        points = [(p["x"], *rates(p, name)) for p in axis["points"] if rates(p, name)]
        if points:
            curves.append((name, COLOURS.get(name, GREY), points))
    return chart.Panel(axis["title"], axis["x"], axis["unit"], curves, asked(axis))


def write(run, a):
    (a.out / "growth.json").write_text(json.dumps(run, indent=1) + "\n")
    (a.out / "growth.md").write_text(table(run))
    names = [(n, COLOURS.get(n, GREY)) for n in run["contestants"]]
    panels = [p for p in (panel(axis, run["contestants"]) for axis in run["axes"]) if p.curves]
    if panels:
        chart.draw(panels, run["title"], names, a.build / "bench" / "bench_draw", a.out / "growth")


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--build", type=Path, default=bench.ROOT / "build", help="where taper is built")
    p.add_argument("--peers", type=Path, default=peers_folder())
    p.add_argument("--with", dest="names", default="", help="contestants beside taper, such as torch,mlx,llama")
    p.add_argument("--axis", action="append", metavar="PATTERN", help="only axes whose name matches")
    p.add_argument("--most", type=int, metavar="X", help="no point beyond X")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="[all]")
    p.add_argument("--turns", type=int, default=3, help="turns over an axis' points [%(default)s]")
    p.add_argument("--rounds", type=int, default=2, help="rounds a point and turn [%(default)s]")
    p.add_argument("--dtype", choices=works.SIZE, default="f32")
    p.add_argument("--rank", type=int, default=8)
    for name, size in SIZES.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    p.add_argument("--out", type=Path, help="folder of the results [BUILD/bench/results]")
    a = p.parse_args(argv)
    a.out = a.out or a.build / "bench" / "results"
    a.seconds = float("inf")
    a.threads, a.names, a.short = [a.threads], ["taper", *filter(None, a.names.split(","))], True
    return a


def main():
    a = parse()
    a.out.mkdir(parents=True, exist_ok=True)
    model = {name: getattr(a, name) for name in SIZES}
    chosen = [x for x in axes(model, a.rank, a.dtype) if any(fnmatch.fnmatch(x.name, p) for p in a.axis or ["*"])]
    if not chosen:
        sys.exit("no axis has such a name")
    sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in model.items())
    run = {
        "title": f"Growth: {sizes}, rank {a.rank}, {a.dtype}, {a.threads[0]} threads", "commit": bench.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "command": sys.argv[1:],
        "contestants": a.names, "versions": {}, "axes": [],
    }  # fmt: skip
    machine = Machine(a.threads[0], a)
    for axis in chosen:
        axis.points = [(x, work) for x, work in axis.points if not a.most or x <= a.most]
        run["axes"].append(measure_axis(axis, machine, run, a))
        write(run, a)
    machine.close()
    print(table(run))
    return 1 if any(p["wrong"] for axis in run["axes"] for p in axis["points"]) else 0


if __name__ == "__main__":
    sys.exit(main())
