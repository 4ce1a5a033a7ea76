"""The works: what is computed, from which inputs, and what limits it.

A Work's `kind` and `keys` are what contestants are told; `inputs` maps a name to ("normal", deviation, shape),
("ids", vocabulary, shape) or ("values", list, shape). `flops` and `bytes` are the least that a call must do: operations
of products, and bytes read and written by what fits no register. The limit that binds a work is the larger of
flops / peak and bytes / bandwidth over a working set of that size; `moves` says which bandwidth that is.
"""

import math
from dataclasses import dataclass, field

SIZE = {"f32": 4, "bf16": 2}
QWEN = dict(hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151936)
TINY = dict(hidden=64, layers=2, heads=4, kv_heads=2, ffn=96, vocab=256)


@dataclass
class Work:
    name: str
    kind: str
    keys: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    flops: float = 0
    bytes: float = 0
    moves: str = "copy"  # or "read"
    units: int = 1  # in a call: the time of one is shown
    model: dict = None  # sizes for make_model.py
    commands: dict = None  # of kind "command": {contestant: words}
    short: bool = False
    tokens: int = 0  # that a call goes through, where it is not `units`

    @property
    def units_of_growth(self):
        return self.tokens or self.units

    @property
    def dtype(self):
        return self.keys.get("dtype", "f32")

    @property
    def tolerance(self):
        """Of max |difference| / max |value|: roundings of the dtype, more where they pass through a whole model."""
        return {"f32": 2e-4, "bf16": 3e-2}[self.dtype] * (3 if self.model else 1)


def normal(*shape, deviation=1.0):
    return ("normal", deviation, shape)


def named(kind, size, dtype="f32", backward=False):
    return "-".join([kind, size, dtype] + ["grad"] * backward)


def both(make):
    """A work forward, and forward and backward."""
    return [make(False), make(True)]


def keys(dtype, backward):
    return {"dtype": dtype, "backward": int(backward)}


def add_chain(length, name, only, **told):
    """Recorded anew in every call, or with program=1 once: then a compiled function and a graph built beforehand, which
    record nothing in a call, are what it is like. `only`: PyTorch's way that does the same."""
    inputs = {"x": normal(16), "y": normal(16)}
    told = {"length": length, "only": only, **told}
    return Work(f"add_chain-{length}-{name}", "add_chain", told, inputs, units=length, short=True)


def lora(rows, width, rank, dtype, short=False):
    inputs = {
        "x": normal(rows, width),
        "a": normal(width, rank, deviation=width**-0.5),
        "b": normal(rank, width, deviation=rank**-0.5),
    }
    moved = (2 * rows * width + 2 * width * rank) * SIZE[dtype]
    name = named("lora", f"{rows}x{width}-r{rank}", dtype)
    return Work(name, "lora", keys(dtype, False), inputs, 4 * rows * width * rank, moved, short=short)


def linear(kind, rows, into, out, rank, dtype, backward, short=False):
    inputs = {"x": normal(rows, into), "w": normal(out, into, deviation=into**-0.5), "dy": normal(rows, out)}
    flops = 2 * rows * into * out
    if kind == "linear_lora":
        inputs.update(a=normal(rank, into, deviation=into**-0.5), b=normal(out, rank, deviation=rank**-0.5))
        flops += 2 * rows * rank * (into + out) * (2 if backward else 1)
    if not backward:
        del inputs["dy"]
    moved = (rows * into + into * out + rows * out) * SIZE[dtype]
    name = named(kind, f"{rows}x{into}-{out}", dtype, backward)
    return Work(name, kind, keys(dtype, backward), inputs, flops * (1 + backward), moved * (1 + backward), short=short)


# Rows: (inputs beside dy that have the whole shape, vectors of the last size; tensors read and written forward,
# and in the backward pass beside that).
ROWS = {
    "softmax": (["x"], [], 2, 3),
    "rms_norm": (["x"], ["weight"], 2, 3),
    "layer_norm": (["x"], ["weight", "bias"], 2, 3),
    "silu_mul": (["gate", "up"], [], 3, 5),
}


def over_rows(kind, rows, width, backward, short=False):
    whole, vectors, forward, back = ROWS[kind]
    inputs = {name: normal(rows, width) for name in whole}
    inputs.update({name: normal(width) for name in vectors})
    if backward:
        inputs["dy"] = normal(rows, width)
    moved = (forward + (back if backward else 0)) * rows * width * 4
    return Work(
        named(kind, f"{rows}x{width}", "f32", backward), kind, keys("f32", backward), inputs, bytes=moved, short=short
    )


def rope(length, heads, size, backward, short=False):
    shape = (1, length, heads, size)
    inputs = {
        "x": normal(*shape),
        "positions": ("values", list(range(length)), (1, length)),
        "frequencies": ("values", [10000.0 ** (-2 * i / size) for i in range(size // 2)], (size // 2,)),
    }
    if backward:
        inputs["dy"] = normal(*shape)
    moved = (4 if backward else 2) * math.prod(shape) * 4
    name = named("rope", f"{length}x{heads * size}", "f32", backward)
    return Work(name, "rope", keys("f32", backward), inputs, bytes=moved, short=short)


def attention(length, backward, heads=14, kv_heads=2, size=64, short=False):
    inputs = {"q": normal(1, length, heads, size)}
    inputs.update({name: normal(1, length, kv_heads, size) for name in "kv"})
    if backward:
        inputs["dy"] = normal(1, length, heads, size)
    pairs = heads * length * (length + 1) // 2  # of a query and a key that it sees
    flops = 2 * size * pairs * (2 + (5 if backward else 0))  # the scores are computed again in the backward pass
    name = named("attention", f"{length}x{heads}x{size}", "f32", backward)
    return Work(name, "attention", keys("f32", backward), inputs, flops, short=short)


def cross_entropy(rows, hidden, vocab, dtype, backward, short=False):
    inputs = {
        "h": normal(rows, hidden),
        "w": normal(vocab, hidden, deviation=hidden**-0.5),
        "labels": ("ids", vocab, (rows,)),
    }
    flops = 2 * rows * hidden * vocab * (1 + backward)
    moved = (rows * hidden + hidden * vocab) * SIZE[dtype]
    name = named("cross_entropy", f"{rows}x{hidden}-{vocab}", dtype, backward)
    return Work(name, "cross_entropy", keys(dtype, backward), inputs, flops, moved, moves="read", short=short)


def parameters(m):
    """Of a pass: the linear layers, and the output head, which is the embedding."""
    head = m["hidden"] // m["heads"]
    layer = 2 * m["hidden"] * (m["hidden"] + m["kv_heads"] * head) + 3 * m["hidden"] * m["ffn"]
    return m["layers"] * layer + m["vocab"] * m["hidden"]


def train_step(label, model, rows, length, dtype, short=False):
    inputs = {"ids": ("ids", model["vocab"], (rows, length + 1))}
    flops = 4 * parameters(model) * rows * length
    name = f"train_step-{label}-{rows}x{length}-{dtype}"
    return Work(name, "train_step", {"dtype": dtype}, inputs, flops, model=model, short=short)


def attention_pairs(model, length):
    """Products of a query's number with a key's, of all layers of a causal pass."""
    return model["layers"] * model["hidden"] * length * (length + 1) // 2


def grown_step(model, rows, length, dtype):
    """A training step of an adapter of the last `adapted` layers, with all operations counted: attention's, the
    adapter's, and no backward pass below the first adapted layer."""
    work = train_step("growth", model, rows, length, dtype)
    head, share = model["vocab"] * model["hidden"], model["adapted"] / model["layers"]
    sizes = model["hidden"], model["hidden"] // model["heads"] * model["kv_heads"], model["ffn"]
    ends = 6 * sizes[0] + 2 * sizes[1] + 3 * (sizes[0] + sizes[2])  # in and out of a layer's projections
    adapter = 6 * model["rank"] * ends * model["adapted"] * rows * length
    linear = 2 * rows * length * (head * 2 + (parameters(model) - head) * (1 + share))
    work.flops = linear + adapter + rows * attention_pairs(model, length) * (4 + 10 * share)
    work.tokens = rows * length
    return work


def generation(kind, label, model, length, dtype, short=False):
    inputs = {"ids": ("ids", model["vocab"], (length,))}
    tokens = {"prompt": length, "generate": 1, "load": length}[kind]
    flops = 2 * parameters(model) * tokens
    moved = parameters(model) * SIZE[dtype]
    if label == "growth":
        cached = 2 * model["layers"] * model["hidden"] // model["heads"] * model["kv_heads"] * length
        flops, moved = flops + 4 * attention_pairs(model, length), moved + cached * SIZE[dtype]
    told = {"dtype": dtype, "tokens": 32}
    name = f"{kind}-{label}-{length}-{dtype}"
    return Work(name, kind, told, inputs, flops, moved, "read", model=model, short=short, tokens=tokens)


def cold_start():
    prompt = ["generate", "--model", "models/taper-wick", "--prompt", "Modern: a small light.\nKing James:"]
    commands = {
        "taper": ["{taper}", *prompt, "--max-tokens", "1"],
        "torch": ["{torch}", "-c", "import torch"],
        "mlx": ["{mlx}", "-c", "import mlx.core"],
    }
    return Work("cold_start", "command", commands=commands, short=True)


def all_works():
    works = [
        add_chain(1000, "unfused", "eager", fuse="-pointwise"),
        add_chain(1000, "fused", "compile"),
        add_chain(1000, "program-unfused", "eager", fuse="-pointwise", program=1),
        add_chain(1000, "program", "compile", program=1),
    ]
    for dtype in SIZE:
        works += [lora(128, 512, 8, dtype, short=True), lora(2048, 896, 16, dtype), lora(16, 4096, 16, dtype)]
    for dtype in SIZE:
        for kind in ("linear", "linear_lora"):
            works += both(lambda backward: linear(kind, 512, 896, 4864, 8, dtype, backward))
    works += [linear("linear_lora", 32, 64, 96, 8, "f32", True, short=True)]  # small: for the short run
    for rows, width in ((128, 512), (4096, 4096)):
        for kind in ROWS:
            works += both(lambda backward: over_rows(kind, rows, width, backward, short=backward and rows == 128))
        works += both(lambda backward: rope(rows, width // 64, 64, backward, short=backward and rows == 128))
    works += [attention(64, True, short=True)]
    for length in (512, 2048):
        works += both(lambda backward: attention(length, backward))
    works += [cross_entropy(16, 64, 1000, "f32", True, short=True)]
    for vocab in (32768, 151936):
        for dtype in SIZE:
            works += both(lambda backward: cross_entropy(512, 896, vocab, dtype, backward))
    for rows, length in ((1, 512), (4, 256)):
        works += [train_step("qwen2.5-0.5b", QWEN, rows, length, dtype) for dtype in ("bf16", "f32")]
    works += [train_step("tiny", TINY, 2, 32, "f32", short=True)]
    for kind, length in (("generate", 16), ("prompt", 512)):
        works += [generation(kind, "qwen2.5-0.5b", QWEN, length, "bf16")]
        works += [generation(kind, "tiny", TINY, length // 8 + 2, "f32", short=True)]
    # From opening a model's files, 1 GB, to the first token behind two: what is beyond reading has gone into the load.
    works += [generation("load", "qwen2.5-0.5b", QWEN, 2, "bf16"), generation("load", "tiny", TINY, 2, "f32", short=True)]
    works.append(cold_start())
    return works
