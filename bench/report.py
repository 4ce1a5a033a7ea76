"""What a run's figures say: quartiles, pairs, a Markdown table, a plot of the ratios."""

import math
import statistics
from xml.sax.saxutils import escape


def quartiles(values):
    """(low, median, high)"""
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def time_text(seconds):
    for unit, scale in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 99.5 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.2f} s"


def best(work, contestant):
    """The contestant's series of the lowest median: (way, series); None where it was not measured."""
    series = work["series"].get(contestant, {})
    if not series:
        return None
    return min(series.items(), key=lambda item: statistics.median(item[1]["seconds"]))


def ratios(work, peer, base="taper"):
    """The peer's time over the base's, of each round's pair."""
    ours, theirs = best(work, base), best(work, peer)
    if not ours or not theirs:
        return None
    return [b / a for a, b in zip(ours[1]["seconds"], theirs[1]["seconds"])]


def shares(work, contestant="taper"):
    """The share of the limit that binds the work, of each round's pair."""
    chosen = best(work, contestant)
    if not chosen or not any(work["limits"]):
        return None
    return [limit / seconds for limit, seconds in zip(work["limits"], chosen[1]["seconds"])]


def peers_of(run):
    return [name for name in run["contestants"] if name != "taper"]


def taper_cells(work):
    """Time and share of the limit."""
    chosen, part = best(work, "taper"), shares(work)
    if not chosen:
        return ["wrong" if "taper" in work["wrong"] else "absent", ""]
    low, median, high = (time_text(t / work["units"]) for t in quartiles(chosen[1]["seconds"]))
    share = "{1:.0f} % ({0:.0f} to {2:.0f})".format(*(100 * p for p in quartiles(part))) if part else ""
    return [f"{median} ({low} to {high})", f"{share} of {work['bound']}" if share else ""]


def peer_cell(work, peer):
    chosen, pairs = best(work, peer), ratios(work, peer)
    if not chosen or not pairs:
        return "wrong" if peer in work["wrong"] else ""
    low, median, high = quartiles(pairs)
    seconds = statistics.median(chosen[1]["seconds"]) / work["units"]
    return f"**{median:.2f}** ({low:.2f} to {high:.2f}): {time_text(seconds)}, {chosen[0]}"


def memory_text(work):
    measured = [(name, best(work, name)) for name in work["series"]]
    peaks = [(name, found[1]["peak_bytes"]) for name, found in measured if found and found[1]["peak_bytes"]]
    return ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks)


def table(run):
    """Markdown: one table a number of threads."""
    peers, lines = peers_of(run), []
    for threads in sorted({work["threads"] for work in run["works"]}):
        lines += [f"\n### {threads} thread{'s' * (threads > 1)}\n"]
        lines += ["| " + " | ".join(["work", "taper", "share of limit", *(f"{p} / taper" for p in peers)]) + " |"]
        lines += ["|---" * (3 + len(peers)) + "|"]
        for work in run["works"]:
            if work["threads"] == threads:
                cells = [work["name"], *taper_cells(work), *(peer_cell(work, peer) for peer in peers)]
                lines.append("| " + " | ".join(cells) + " |")
        memory = [(w["name"], memory_text(w)) for w in run["works"] if w["threads"] == threads and w["model"]]
        lines += ["", "Peak memory of the process:", ""] * bool(memory)
        lines += [f"- {name}: {text}" for name, text in memory]
    lines += [""] + [f"{name} is absent: {why}" for name, why in run["absent"].items()]
    lines += [f"{key.split()[0]} is too slow: {why}" for key, why in run["slow"].items()]
    lines += [f"WRONG: {w['name']}: {name}: {why}" for w in run["works"] for name, why in w["wrong"].items()]
    return "\n".join(lines).rstrip() + "\n"


# ---- the plot ----

COLOURS = {"torch": "#c8553d", "mlx": "#588157", "llama": "#5a6fa8"}
ROW, LEFT, WIDE = 15, 300, 420
MOST = 64  # the axis ends at 1/4 and here, logarithmic


def position(ratio):
    clamped = min(max(ratio, 0.25), MOST)
    return LEFT + WIDE * math.log(clamped / 0.25) / math.log(MOST / 0.25)


def bar(y, label, ratio, colour):
    low, middle, high = (position(r) for r in ratio)
    one = position(1.0)
    yield f'<text x="{LEFT - 6}" y="{y + 11}" text-anchor="end">{escape(label)}</text>'
    yield f'<rect x="{min(one, middle):.1f}" y="{y + 2}" width="{abs(middle - one):.1f}" height="{ROW - 4}" fill="{colour}"/>'
    yield f'<path d="M{low:.1f} {y + ROW / 2} H{high:.1f}" stroke="#222"/>'
    yield f'<text x="{max(high, middle, one) + 4:.1f}" y="{y + 11}">{ratio[1]:.2f}</text>'


def plot(run):
    """An SVG: the time of each peer over taper's, quartiles as a line; bars to the right of 1 are slower peers."""
    rows = []
    for work in run["works"]:
        for peer in peers_of(run):
            pairs = ratios(work, peer)
            if pairs:
                label = f"{work['name']}, {work['threads']} thr., {peer}"
                rows.append((label, quartiles(pairs), COLOURS.get(peer, "#888")))
    height = ROW * (len(rows) + 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDE + 60}" height="{height}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="100%" height="{height}" fill="#fff"/>',
    ]
    ratio = 0.25
    while ratio <= MOST:
        x = position(ratio)
        lines.append(f'<path d="M{x:.1f} {ROW} V{height}" stroke="{"#888" if ratio == 1 else "#ddd"}"/>')
        lines.append(f'<text x="{x:.1f}" y="11" text-anchor="middle">{ratio:g}</text>')
        ratio *= 2
    for i, (label, values, colour) in enumerate(rows):
        lines += bar(ROW * (i + 1), label, values, colour)
    return "\n".join([*lines, "</svg>"]) + "\n"
