"""Charts as lists of strokes for bench_draw: panels in two columns, both axes logarithmic.

A Panel's `curves` are (name, colour, [(x, low, middle, high)]); `asked` is a dashed curve [(x, y)].
"""

import math
import subprocess
from dataclasses import dataclass, field

WIDE, HIGH = 420, 270  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 42  # margins in it
HEAD = 44  # above all panels
INK, GRID = "0.2 0.2 0.22", "0.88 0.88 0.9"


@dataclass
class Panel:
    title: str
    x: str
    y: str
    curves: list
    asked: list = field(default_factory=list)


def number_text(value):
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g}"


def marks(low, high):
    """Round numbers inside, the finest of which there are at most eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for round_numbers in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        found = [m * 10.0**p for p in powers for m in round_numbers if low <= m * 10.0**p <= high]
        if len(found) <= 8:
            break
    return found


class Scale:
    """A logarithmic axis from data to points."""

    def __init__(self, values, begin, end):
        self.low, self.high = min(values), max(values)
        if self.high < 1.5 * self.low:
            self.low, self.high = self.low / 1.25, self.high * 1.25
        self.begin, self.end = begin, end

    def __call__(self, value):
        return self.begin + math.log(value / self.low) / math.log(self.high / self.low) * (self.end - self.begin)


def line(width, dash, points):
    return f"line {width} {dash} " + " ".join(f"{x:.1f} {y:.1f}" for x, y in points)


def text(size, align, x, y, words, angle=0):
    return f"text {size} {align} {angle} {x:.1f} {y:.1f} {words}"


def frame(panel, x, y, left, top, ticks):
    right, bottom = left + WIDE - RIGHT, top + HIGH - BOTTOM
    for value in marks(y.low, y.high):
        yield f"colour {GRID}"
        yield line(1, 0, [(left + LEFT, y(value)), (right, y(value))])
        yield f"colour {INK}"
        yield text(11, 1, left + LEFT - 6, y(value) + 4, number_text(value))
    yield f"colour {INK}"
    for value in ticks:
        yield line(1, 0, [(x(value), bottom), (x(value), bottom + 4)])
        yield text(11, 0.5, x(value), bottom + 16, f"{value:,}")
    yield line(1, 0, [(left + LEFT, bottom), (right, bottom)])
    yield text(11, 0.5, (left + LEFT + right) / 2, bottom + 32, panel.x)
    yield text(11, 0.5, left + 12, (top + TOP + bottom) / 2, panel.y, -90)
    yield text(13, 0, left + LEFT, top + 20, panel.title)


def draw_panel(panel, left, top):
    xs = sorted({point[0] for _, _, points in panel.curves for point in points})
    ys = [y for _, _, points in panel.curves for point in points for y in point[1:]] + [y for _, y in panel.asked]
    x = Scale(xs, left + LEFT + 10, left + WIDE - RIGHT - 10)
    y = Scale([min(ys) / 1.2, max(ys) * 1.2], top + HIGH - BOTTOM, top + TOP)
    yield from frame(panel, x, y, left, top, xs)
    if panel.asked:
        yield f"colour {INK}"
        yield line(1, 4, [(x(a), y(b)) for a, b in panel.asked])
    for _, colour, points in panel.curves:
        yield f"colour {colour}"
        yield line(1.8, 0, [(x(p[0]), y(p[2])) for p in points])
        for at, low, middle, high in points:
            yield f"dot 2.6 {x(at):.1f} {y(middle):.1f}"
            yield line(1, 0, [(x(at), y(low)), (x(at), y(high))])


def draw(panels, title, names, program, out):
    """Writes out.svg and out.png; `names` is the legend, (name, colour)."""
    rows = -(-len(panels) // 2)
    strokes = [f"size {2 * WIDE} {HEAD + rows * HIGH}", f"colour {INK}", text(14, 0, 16, 20, title)]
    at = 16
    for name, colour in names:
        strokes += [f"colour {colour}", line(1.8, 0, [(at, 34), (at + 22, 34)]), text(11, 0, at + 28, 38, name)]
        at += 60 + 6 * len(name)
    for i, panel in enumerate(panels):
        strokes += draw_panel(panel, i % 2 * WIDE, HEAD + i // 2 * HIGH)
    subprocess.run([str(program), str(out)], input="\n".join(strokes) + "\n", text=True, check=True)
