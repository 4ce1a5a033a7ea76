"""PyTorch's side of the rows of gpu_ops: the same operations and dtypes, as a program of PyTorch writes them."""

import re
import statistics
import time

import torch
import torch.nn.functional as F

BF16 = torch.bfloat16


def normal(*shape, deviation=1.0, dtype=BF16):
    return (torch.randn(*shape, device="cuda") * deviation).to(dtype)


# ---- kinds: each returns the function that is timed ----


def matmul(m, k, n):
    a, b = normal(m, k), normal(k, n, deviation=k**-0.5)
    return lambda: a @ b


def lora(m, width, rank, dtype=BF16):
    x, a = normal(m, width), normal(width, rank, deviation=width**-0.5, dtype=dtype)
    b = normal(rank, width, deviation=rank**-0.5, dtype=dtype)
    if dtype is BF16:
        return lambda: (x @ a @ b) * 2.0
    return lambda: ((x.to(dtype) @ a @ b) * 2.0).to(BF16)


def linear(m, into, out):
    x, w = normal(m, into), normal(out, into, deviation=into**-0.5)
    return lambda: F.linear(x, w)


def linear_dx(m, into, out):
    dy, w = normal(m, out), normal(out, into, deviation=into**-0.5)
    return lambda: dy @ w


def adapted(m, into, out, rank, dtype=BF16):
    x, w = normal(m, into), normal(out, into, deviation=into**-0.5)
    a = normal(rank, into, deviation=into**-0.5, dtype=dtype)
    return x, w, a, normal(out, rank, deviation=rank**-0.5, dtype=dtype)


def linear_lora(*sizes):
    x, w, a, b = adapted(*sizes)
    return lambda: F.linear(x, w) + F.linear(F.linear(x, a), b) * 2.0


def linear_lora_f32(*sizes):
    """As PEFT computes it: the update in the adapter's dtype."""
    x, w, a, b = adapted(*sizes, dtype=torch.float32)

    def function():
        y = F.linear(x, w)
        return (y + F.linear(F.linear(x.to(a.dtype), a), b) * 2.0).to(y.dtype)

    return function


def linear_lora_dx(m, into, out, rank):
    _, w, a, b = adapted(m, into, out, rank)
    dy = normal(m, out)
    return lambda: dy @ w + (dy @ b) @ a * 2.0


def linear_lora_grad(m, into, out, rank):
    """Forward and all gradients, written out: no product is computed twice."""
    x, w, a, b = adapted(m, into, out, rank)
    dy = normal(m, out)

    def function():
        down, up = F.linear(x, a) * 2.0, (dy @ b) * 2.0
        return F.linear(x, w) + F.linear(down, b), dy @ w + up @ a, up.T @ x, dy.T @ down

    return function


def with_gradients(function, tensors, dy):
    for tensor in tensors:
        tensor.requires_grad_(True)
    return lambda: torch.autograd.grad(function(*tensors), tensors, dy)


def softmax(m, n):
    x = normal(m, n)
    return lambda: torch.softmax(x, -1)


def softmax_grad(m, n):
    return with_gradients(lambda x: torch.softmax(x, -1), [normal(m, n)], normal(m, n))


def rms_norm(m, n):
    x, weight = normal(m, n), normal(n)
    return lambda: F.rms_norm(x, (n,), weight, 1e-6)


def rms_norm_grad(m, n):
    weight = normal(n)
    return with_gradients(lambda x: F.rms_norm(x, (n,), weight, 1e-6), [normal(m, n)], normal(m, n))


def add_rms_norm(m, n):
    a, b, weight = normal(m, n), normal(m, n), normal(n)

    def function():
        total = a + b
        return total, F.rms_norm(total, (n,), weight, 1e-6)

    return function


def silu_mul(m, n):
    gate, up = normal(m, n), normal(m, n)
    return lambda: F.silu(gate) * up


def silu_mul_grad(m, n):
    return with_gradients(lambda gate, up: F.silu(gate) * up, [normal(m, n), normal(m, n)], normal(m, n))


def chain(m, n):
    x, y, z = normal(m, n), normal(m, n), normal(m, n)
    return lambda: (x * y + x) * torch.tanh(z) - 0.5 * z


def rope(batch, length, heads, size):
    """With the sines made before, as transformers does it."""
    x = normal(batch, length, heads, size)
    frequencies = 1e6 ** (-torch.arange(0, size, 2, device="cuda") / size)
    angle = torch.arange(length, device="cuda")[:, None] * frequencies
    angle = torch.cat((angle, angle), -1)[None, :, None, :]
    cos, sin = angle.cos().to(BF16), angle.sin().to(BF16)

    def function():
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    return function


def heads_first(batch, length, heads, size):
    return normal(batch, length, heads, size).transpose(1, 2)


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention_inputs(batch, length, heads, size, kv_heads):
    return [heads_first(batch, length, n, size) for n in (heads, kv_heads, kv_heads)]


def attention(*sizes):
    q, k, v = attention_inputs(*sizes)
    return lambda: attend(q, k, v)


def attention_grad(batch, length, heads, size, kv_heads):
    tensors = [t.detach() for t in attention_inputs(batch, length, heads, size, kv_heads)]
    return with_gradients(attend, tensors, heads_first(batch, length, heads, size))


def gather(vocab, width, count):
    table, ids = normal(vocab, width), torch.randint(0, vocab, (count,), device="cuda")
    return lambda: F.embedding(ids, table)


def cross_entropy(m, width, vocab):
    w, labels = normal(vocab, width, deviation=width**-0.5), torch.randint(0, vocab, (m,), device="cuda")
    dy = normal(m, dtype=torch.float32)

    def loss(h):
        return F.cross_entropy(F.linear(h, w).float(), labels, reduction="none")

    return with_gradients(loss, [normal(m, width)], dy)


def adapters(layers, width, ffn, kv, rank):
    features = [(width, width), (width, kv), (width, kv), (width, width), (width, ffn), (width, ffn), (ffn, width)]
    shapes = [shape for into, out in features for shape in ((rank, into), (out, rank))]
    return [normal(*shape, deviation=0.02, dtype=torch.float32) for _ in range(layers) for shape in shapes]


def adamw(*sizes):
    tensors = adapters(*sizes)
    for tensor in tensors:
        tensor.requires_grad_(True)
        tensor.grad = torch.randn_like(tensor)
    return torch.optim.AdamW(tensors, lr=1e-6, fused=True, capturable=True).step


def squares(*sizes):
    tensors = adapters(*sizes)
    return lambda: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


KINDS = {
    f.__name__: f
    for f in (
        matmul, lora, linear, linear_dx, linear_lora, linear_lora_f32, linear_lora_dx, linear_lora_grad, softmax,
        softmax_grad, rms_norm, rms_norm_grad, add_rms_norm, silu_mul, silu_mul_grad, chain, rope, attention,
        attention_grad, gather, cross_entropy, adamw, squares,
    )
}  # fmt: skip
# What the compiler can make one kernel of; products are searched for, which takes long.
COMPILED = {"lora": "max-autotune-no-cudagraphs", "softmax": None, "rms_norm": None, "chain": None}


# ---- times, in microseconds ----


def on_stream(function, times, samples=7):
    """Of calls that follow each other."""
    for _ in range(3):
        function()
    found = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            function()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / times)
    return statistics.median(found)


CAPTURED_CALLS = 10


def capture(function):
    """A graph of several calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CAPTURED_CALLS):
            function()
    return graph


def captured(function):
    """Of a call within a captured graph."""
    graph = capture(function)
    once = on_stream(graph.replay, 3, 1)
    return on_stream(graph.replay, max(3, int(10e3 / once))) / CAPTURED_CALLS


def call(function, seconds=0.2):
    """Of a call and the wait for it."""
    found, start = [], time.perf_counter()
    while len(found) < 200 and time.perf_counter() - start < seconds:
        before = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - before) * 1e6)
    return statistics.median(found)


def tried(measure):
    """What cannot be captured or compiled has no such figure."""
    try:
        return measure()
    except Exception as why:
        torch.cuda.synchronize()
        return {"error": f"{type(why).__name__}: {why}"[:200]}


def make(name):
    """The function of a row."""
    kind, *rest = name.split("-", 1)
    return KINDS[kind](*(int(size) for size in re.findall(r"\d+", "-".join(rest)))) if kind in KINDS else None


def measure(name):
    kind, function = name.split("-", 1)[0], make(name)
    if not function:
        return {"error": "PyTorch has no such row"}
    once = on_stream(function, 1, 3)
    found = {"eager_us": on_stream(function, max(1, int(10e3 / once))), "call_us": call(function)}
    found["captured_us"] = tried(lambda: captured(function))
    if kind in COMPILED:
        compiled = torch.compile(function, mode=COMPILED[kind], dynamic=False)
        found["compiled_us"] = tried(lambda: captured(compiled))
    return found


def overhead(names, pairs=25):
    """What the first row takes beyond the others together, captured, in turn with them: as gpu_ops measures it."""
    functions = [make(name) for name in names]  # kept: their operands are what the graphs read
    graphs = [capture(function) for function in functions]
    for graph in graphs:
        on_stream(graph.replay, 3, 1)
    times = [[on_stream(graph.replay, 3, 1) / CAPTURED_CALLS for graph in graphs] for _ in range(pairs)]
    ratios = [ours / sum(bases) for ours, *bases in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "us": statistics.median(ours for ours, *_ in times), "base_us": statistics.median(sum(t[1:]) for t in times),
        "ratio": middle, "ratio_low": low, "ratio_high": high,
    }  # fmt: skip
