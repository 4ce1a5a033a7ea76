"""Growth as plots: tokens a second and memory against length, batch, rank and model size, ours beside the peer's.

A plot is a list of shapes, written as SVG and drawn by cairo, which the library needs anyway, into a PNG; where cairo
cannot be loaded there are no PNGs.
"""

import ctypes
import ctypes.util
import math
import sys
from xml.sax.saxutils import escape

import rows

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 64, 16, 34, 44
COLOURS = {"ours": (0.16, 0.44, 0.60), "peer": (0.78, 0.33, 0.24)}
NAMES = {"ours": "taper", "peer": "PEFT, eager"}
GREY, BLACK, WHITE = (0.86, 0.86, 0.86), (0.13, 0.13, 0.13), (1, 1, 1)
SIZE = 11  # of letters

# series: (label of the axis, value of a point)
AXES = {
    "length": ("tokens in a sequence (batch 1, 0.5B)", lambda p: p["length"]),
    "batch": ("sequences of 512 tokens (0.5B)", lambda p: p["rows"]),
    "rank": ("rank (batch 8 × 512, 0.5B)", lambda p: p["rank"]),
    "model": ("parameters (batch 4 × 1024)", lambda p: rows.weight_bytes(p["model"]) / 2),
}
MEASURES = {
    "speed": ("tokens/s", lambda f: f["tokens_per_second"]),
    "memory": ("peak memory, GB", lambda f: f["peak_bytes"] / 1e9),
}


# ---- shapes: ("line", points, colour, width), ("dot", x, y, colour), ("text", x, y, text, colour, anchor) ----


def short(value):
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


class Axis:
    """Logarithmic, from `start` to `end` in pixels."""

    def __init__(self, values, start, end):
        self.low, self.high, self.start, self.end = min(values), max(values), start, end
        if self.low == self.high:
            self.low, self.high = self.low / 2, self.high * 2

    def at(self, value):
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self):
        """1, 2 and 5 times the powers of ten, or fewer of them."""
        digits = (1, 2, 5) if self.high / self.low < 200 else (1,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in digits]
        return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]


def frame(title, label, x, y, x_ticks):
    yield ("text", WIDTH / 2, 18, title, BLACK, "middle")
    yield ("text", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, label, BLACK, "middle")
    for value in y.ticks():
        at = y.at(value)
        yield ("line", [(LEFT, at), (WIDTH - RIGHT, at)], GREY, 1)
        yield ("text", LEFT - 6, at + 4, short(value), BLACK, "end")
    for value in x_ticks:
        at = x.at(value)
        yield ("line", [(at, TOP), (at, HEIGHT - BOTTOM)], GREY, 1)
        yield ("text", at, HEIGHT - BOTTOM + 15, short(value) if value >= 1e6 else f"{value:g}", BLACK, "middle")


def curve(side, points, x, y, name_y):
    places = [(x.at(a), y.at(b)) for a, b in points]
    yield ("line", places, COLOURS[side], 2)
    for place in places:
        yield ("dot", *place, COLOURS[side])
    yield ("text", LEFT + 10, name_y, NAMES[side], COLOURS[side], "start")


def shapes(points, series, measure):
    """None where no side has a figure."""
    label, value_of = AXES[series]
    title, figure_of = MEASURES[measure]
    curves = {}
    for side in ("ours", "peer"):
        found = [(value_of(p), figure_of(p[side])) for p in points.values() if "tokens_per_second" in p.get(side, {})]
        if found:
            curves[side] = sorted(found)
    if not curves:
        return None
    every = [pair for found in curves.values() for pair in found]
    x = Axis([a for a, _ in every], LEFT + 14, WIDTH - RIGHT - 14)
    values = [b for _, b in every]
    y = Axis([min(values) / 1.3, max(values) * 1.6], HEIGHT - BOTTOM, TOP)
    drawn = list(frame(title, label, x, y, sorted({a for a, _ in every})))
    for i, (side, found) in enumerate(curves.items()):
        drawn += curve(side, found, x, y, TOP + 14 + 14 * i)
    return drawn


# ---- as SVG ----


def css(colour):
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def svg_shape(kind, *rest):
    if kind == "line":
        points, colour, width = rest
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polyline points="{path}" fill="none" stroke="{css(colour)}" stroke-width="{width}"/>'
    if kind == "dot":
        x, y, colour = rest
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{css(colour)}"/>'
    x, y, text, colour, anchor = rest
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{css(colour)}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(drawn):
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="{SIZE}">'
    )
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, background, *(svg_shape(*shape) for shape in drawn), "</svg>"]) + "\n"


# ---- as PNG ----


class Extents(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("x", "y", "width", "height", "x_advance", "y_advance")]


class Cairo:
    """A surface; methods are cairo's functions of its context, numbers are doubles."""

    SCALE = 2

    def __init__(self, library):
        self.library = library
        for name in ("cairo_image_surface_create", "cairo_create"):
            getattr(library, name).restype = ctypes.c_void_p
        size = (ctypes.c_int(self.SCALE * WIDTH), ctypes.c_int(self.SCALE * HEIGHT))
        self.surface = ctypes.c_void_p(library.cairo_image_surface_create(ctypes.c_int(1), *size))
        self.context = ctypes.c_void_p(library.cairo_create(self.surface))
        self.call("scale", self.SCALE, self.SCALE)
        self.call("set_source_rgb", *WHITE)
        self.call("paint")
        self.call("select_font_face", b"sans-serif", ctypes.c_int(0), ctypes.c_int(0))
        self.call("set_font_size", SIZE)

    def call(self, name, *arguments):
        numbers = [ctypes.c_double(v) if isinstance(v, (int, float)) else v for v in arguments]
        getattr(self.library, "cairo_" + name)(self.context, *numbers)

    def draw(self, kind, *rest):
        if kind == "line":
            points, colour, width = rest
            self.call("set_source_rgb", *colour)
            self.call("set_line_width", width)
            self.call("move_to", *points[0])
            for point in points[1:]:
                self.call("line_to", *point)
            self.call("stroke")
        elif kind == "dot":
            x, y, colour = rest
            self.call("set_source_rgb", *colour)
            self.call("arc", x, y, 3, 0, 2 * math.pi)
            self.call("fill")
        else:
            self.write(*rest)

    def write(self, x, y, text, colour, anchor):
        extents = Extents()
        self.call("text_extents", text.encode(), ctypes.byref(extents))
        shift = {"start": 0, "middle": 0.5, "end": 1}[anchor] * extents.x_advance
        self.call("set_source_rgb", *colour)
        self.call("move_to", x - shift, y)
        self.call("show_text", text.encode())

    def save(self, path):
        if self.library.cairo_surface_write_to_png(self.surface, str(path).encode()):
            print(f"{path} cannot be written", file=sys.stderr)
        self.library.cairo_destroy(self.context)
        self.library.cairo_surface_destroy(self.surface)


def load_cairo():
    for name in (ctypes.util.find_library("cairo"), "libcairo.so.2"):
        try:
            if name:
                return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def png(drawn, path, library):
    cairo = Cairo(library)
    for shape in drawn:
        cairo.draw(*shape)
    cairo.save(path)


def write_all(found, folder):
    library = load_cairo()
    if not library:
        print("cairo is not there: the plots are SVG alone", file=sys.stderr)
    for series in AXES:
        for measure in MEASURES:
            drawn = shapes(found.get(f"growth-{series}", {}), series, measure)
            if not drawn:
                continue
            path = folder / f"growth-{series}-{measure}"
            path.with_suffix(".svg").write_text(svg(drawn))
            if library:
                png(drawn, path.with_suffix(".png"), library)
