"""Growth as panels of one chart: tokens a second and memory against length, batch, rank and model size."""

import statistics
import sys

import chart
import rows

SIDES = [("ours", "taper", "0.15 0.42 0.70"), ("peer", "PEFT, eager", "0.78 0.33 0.24")]

# series: (title, axis, what a point stands at)
SERIES = {
    "length": ("0.5B, batch 1", "tokens in a sequence", lambda p: p["length"]),
    "batch": ("0.5B, 512 tokens", "sequences in a batch", lambda p: p["rows"]),
    "rank": ("0.5B, 8 × 512", "rank", lambda p: p["rank"]),
    "model": ("4 × 1024", "millions of parameters read", lambda p: round(rows.weight_bytes(p["model"]) / 2e6)),
}


def speeds(point, figures):
    """Quartiles of the steps' tokens a second."""
    found = [point["rows"] * point["length"] / seconds for seconds in figures["seconds"]]
    low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
    return low, middle, high


def memory(point, figures):
    return (figures["peak_bytes"] / 1e9,) * 3


def panel(points, series, unit, measure):
    """None where no side has a figure."""
    title, axis, at = SERIES[series]
    curves = []
    for side, name, colour in SIDES:
        found = [(at(p), *measure(p, p[side])) for p in points.values() if "tokens_per_second" in p[side]]
        if found:
            curves.append((name, colour, sorted(found)))
    return chart.Panel(title, axis, unit, curves) if curves else None


def write(found, program, out):
    """OUT.svg and OUT.png, by bench_draw."""
    measures = [("tokens/s", speeds), ("peak memory, GB", memory)]
    panels = [
        panel(found.get(f"growth-{series}", {}), series, unit, measure) for series in SERIES for unit, measure in measures
    ]
    panels = [p for p in panels if p]
    if not panels:
        return
    if not program.exists():
        print(f"{program} is not there: no plots", file=sys.stderr)
        return
    names = [(name, colour) for _, name, colour in SIDES]
    chart.draw(panels, "LoRA training steps, bf16, adapters of all linear layers", names, program, out)
