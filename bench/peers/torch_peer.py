"""PyTorch, with transformers and PEFT for whole models: eager, and through torch.compile where it can help.

Forward works run in inference mode; where gradients are wanted, only what has them requires them.
"""

import importlib.metadata
import time
from pathlib import Path

import numpy
import peer
import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Without such instructions PyTorch's products of bf16 take several times as long as those of f32.
MULTIPLIES_BF16 = any(flag in Path("/proc/cpuinfo").read_text().split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def best_dtype(keys):
    """The quicker dtype for a work of this dtype; ways say so where it is another."""
    wanted = keys.get("dtype", "f32")
    return wanted if MULTIPLIES_BF16 else "f32"


def named_ways(keys, ways):
    """Entries by way, with the dtype in the name where it is not the work's."""
    same = best_dtype(keys) == keys.get("dtype", "f32")
    return ways if same else {f"{way}-f32": f for way, f in ways.items()}


# ---- operations: the works of bench/works_operations.c ----


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def attention(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def add_chain(keys):
    def chain(x, y):
        for _ in range(keys.number("length", 1000)):
            x = x + y
        return x

    return chain


def rope(positions, frequencies):
    angle = (positions[:, :, None].float() * frequencies)[:, :, None, :]
    return angle.cos(), angle.sin()


# Name: (function of the tensors, their names, of them those whose gradient is wanted).
OPERATIONS = {
    "lora": (lambda x, a, b: (x @ a @ b) * 2.0, "x a b", "x a b"),
    "linear": (F.linear, "x w", "x"),
    "linear_lora": (lambda x, w, a, b: F.linear(x, w) + F.linear(F.linear(x, a), b) * 2.0, "x w a b", "x a b"),
    "softmax": (lambda x: torch.softmax(x, -1), "x", "x"),
    "rms_norm": (lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6), "x weight", "x"),
    "layer_norm": (lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5), "x weight bias", "x"),
    "silu_mul": (lambda gate, up: F.silu(gate) * up, "gate up", "gate up"),
    "attention": (attention, "q k v", "q k v"),
    "cross_entropy": (lambda h, w, labels: F.cross_entropy(F.linear(h, w).float(), labels.long()), "h w labels", "h"),
}


def load(folder, name, dtype):
    values = torch.from_numpy(numpy.load(Path(folder) / f"{name}.npy"))
    return values.to(dtype) if values.is_floating_point() else values


def operation(name, keys):
    """The function of the work, its tensors, and the numbers of those whose gradients are wanted."""
    folder, dtype = keys["inputs"], DTYPES[best_dtype(keys)]
    if name == "add_chain":
        function, names, wanted = add_chain(keys), "x y", ""
    elif name == "rope":
        cos, sin = rope(load(folder, "positions", dtype), load(folder, "frequencies", torch.float32))
        cos, sin = cos.to(dtype), sin.to(dtype)
        function, names, wanted = lambda x: rotate(x, cos, sin), "x", "x"
    else:
        function, names, wanted = OPERATIONS[name]
    names = names.split()
    return function, [load(folder, n, dtype) for n in names], [names.index(n) for n in wanted.split()], names


def make_operation(name, keys):
    function, tensors, wanted, names = operation(name, keys)
    backward = keys.number("backward")
    dy = None
    if backward:
        for i in wanted:
            tensors[i].requires_grad_(True)
        if (Path(keys["inputs"]) / "dy.npy").exists():
            dy = load(keys["inputs"], "dy", tensors[0].dtype)

    def whole(f):
        if backward:
            y = f(*tensors)
            return [y, *torch.autograd.grad(y, [tensors[i] for i in wanted], dy)]
        with torch.inference_mode():
            return [f(*tensors)]

    def named(f):
        return dict(zip(["y", *(names[i] for i in wanted)], (t.detach().float().numpy() for t in whole(f))))

    ways = {"eager": function}
    if keys.number("compile", 1):
        ways["compile"] = torch.compile(function)
    return peer.entry(keys, named_ways(keys, ways), whole, named)


# ---- whole models ----


def load_model(keys):
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(keys["model"], dtype=DTYPES[best_dtype(keys)])


def make_training(keys):
    from peft import PeftModel

    model = load_model(keys)
    model.config.use_cache = False
    model = PeftModel.from_pretrained(model, keys["adapter"], is_trainable=True)
    ids = load(keys["inputs"], "ids", None).long()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)

    def step(forward):
        logits = forward(input_ids=ids[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    start = {p: p.detach().clone() for p in trained}

    def losses(forward):
        """Of the first three steps, whatever was run before."""
        with torch.no_grad():
            for p in trained:
                p.copy_(start[p])
        optimizer.state.clear()
        return {"losses": [step(forward) for _ in range(3)]}

    ways = {"eager": model}
    if keys.number("compile", 1):
        ways["compile"] = torch.compile(model)
    ways = named_ways(keys, ways)
    return peer.Entry(
        {way: lambda f=f: (step(f), None)[1] for way, f in ways.items()},
        {way: lambda f=f: losses(f) for way, f in ways.items()},
    )


def make_load(keys):
    """From opening the files to the first token's logits."""

    @torch.inference_mode()
    def logits():
        model = load_model(keys).eval()
        return model(input_ids=load(keys["inputs"], "ids", None).long()[None], logits_to_keep=1).logits[:, -1]

    ways = named_ways(keys, {"eager": lambda: (logits(), None)[1]})
    return peer.Entry(ways, {way: lambda: {"logits": logits().float().numpy()} for way in ways})


def make_generation(name, keys):
    model = load_model(keys).eval()
    ids = load(keys["inputs"], "ids", None).long()[None]
    tokens = keys.number("tokens", 32)

    def forward(fed, cache):
        out = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    @torch.inference_mode()
    def run():
        start = time.perf_counter()
        logits, cache = forward(ids, None)
        if name == "prompt":
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(tokens - 1):
            logits, cache = forward(logits.argmax(-1, keepdim=True), cache)
        return (time.perf_counter() - start) / (tokens - 1)

    @torch.inference_mode()
    def results():
        _, cache = forward(ids[:, :-1], None)
        return {"logits": forward(ids[:, -1:], cache)[0].float().numpy()}

    return peer.Entry(named_ways(keys, {"eager": run}), named_ways(keys, {"eager": results}))


def make(name, keys):
    torch.set_num_threads(keys.number("threads", 1))
    torch.set_num_interop_threads(1)
    if name == "train_step":
        return make_training(keys)
    if name in ("prompt", "generate"):
        return make_generation(name, keys)
    if name == "load":
        return make_load(keys)
    if name in OPERATIONS or name in ("add_chain", "rope"):
        return make_operation(name, keys)
    return None


if __name__ == "__main__":
    packages = ["torch", "transformers", "peft"]
    peer.serve(",".join(f"{p}-{importlib.metadata.version(p)}" for p in packages), make)
