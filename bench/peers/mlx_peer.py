"""MLX's CPU build, with mlx-lm for whole models: as recorded, and through mx.compile.

MLX takes its threads from the environment and the processors it may use, which the driver sets.
"""

import importlib.metadata
import json
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy
import peer

DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16}


# ---- operations: the works of bench/works_operations.c ----


def attention(q, k, v):
    q, k, v = (t.swapaxes(1, 2) for t in (q, k, v))
    scale = q.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal").swapaxes(1, 2)


def rope(x):
    turned = mx.fast.rope(x.swapaxes(1, 2), x.shape[-1], traditional=False, base=10000.0, scale=1.0, offset=0)
    return turned.swapaxes(1, 2)


def add_chain(keys):
    def chain(x, y):
        for _ in range(keys.number("length", 1000)):
            x = x + y
        return x

    return chain


def cross_entropy(h, w, labels):
    return nn.losses.cross_entropy((h @ w.T).astype(mx.float32), labels, reduction="mean")


# Name: (function of the arrays, their names, of them those whose gradient is wanted).
OPERATIONS = {
    "lora": (lambda x, a, b: (x @ a @ b) * 2.0, "x a b", "x a b"),
    "linear": (lambda x, w: x @ w.T, "x w", "x"),
    "linear_lora": (lambda x, w, a, b: x @ w.T + (x @ a.T @ b.T) * 2.0, "x w a b", "x a b"),
    "softmax": (lambda x: mx.softmax(x, -1), "x", "x"),
    "rms_norm": (lambda x, weight: mx.fast.rms_norm(x, weight, 1e-6), "x weight", "x"),
    "layer_norm": (lambda x, weight, bias: mx.fast.layer_norm(x, weight, bias, 1e-5), "x weight bias", "x"),
    "rope": (rope, "x", "x"),
    "silu_mul": (lambda gate, up: nn.silu(gate) * up, "gate up", "gate up"),
    "attention": (attention, "q k v", "q k v"),
    "cross_entropy": (cross_entropy, "h w labels", "h"),
}


def load(folder, name, dtype):
    values = mx.array(numpy.load(Path(folder) / f"{name}.npy"))
    return values.astype(dtype) if values.dtype == mx.float32 else values


def make_operation(name, keys):
    folder, dtype = keys["inputs"], DTYPES[keys.get("dtype", "f32")]
    function, names, wanted = OPERATIONS.get(name) or (add_chain(keys), "x y", "")
    names, wanted = names.split(), wanted.split()
    arrays = [load(folder, n, dtype) for n in names]
    dy = load(folder, "dy", dtype) if (Path(folder) / "dy.npy").exists() else None
    numbers = [names.index(n) for n in wanted]

    def scalar(*arguments):
        y = function(*arguments)
        return (y if dy is None else (y * dy).sum()), y

    def whole(*arguments):
        if not keys.number("backward"):
            return [function(*arguments)]
        (_, y), gradients = mx.value_and_grad(scalar, argnums=numbers)(*arguments)
        return [y, *gradients]

    def call(f):
        out = f(*arrays)
        mx.eval(out)
        return out

    def named(f):
        return dict(zip(["y", *wanted], (numpy.array(t.astype(mx.float32)) for t in call(f))))

    mx.eval(arrays)
    return peer.entry(keys, {"eager": whole, "compile": mx.compile(whole)}, call, named)


# ---- whole models ----


def load_model(keys):
    from mlx_lm.utils import load_model as load_weights

    return load_weights(Path(keys["model"]))[0]


def put_adapter(model, folder):
    """Turns the model's linear layers into mlx-lm's adapted ones that hold the values of a PEFT directory."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    model.freeze()
    layers = config.get("layers_to_transform") or model.layers  # always the last
    linear_to_lora_layers(model, len(layers), {"rank": config["r"], "scale": scale, "dropout": 0.0})
    values = mx.load(str(Path(folder) / "adapter_model.safetensors"))
    modules = dict(model.named_modules())
    for name, value in values.items():
        path, matrix = name.removeprefix("base_model.model.").rsplit(".", 2)[0], name.split(".")[-2]
        setattr(modules[path], {"lora_A": "lora_a", "lora_B": "lora_b"}[matrix], value.T)


def make_training(keys):
    import mlx.optimizers

    model = load_model(keys)
    put_adapter(model, keys["adapter"])
    model.train()
    ids = load(keys["inputs"], "ids", None)
    start = [(name, mx.array(value)) for name, value in mlx.utils.tree_flatten(model.trainable_parameters())]

    def loss(ids):
        logits = model(ids[:, :-1]).astype(mx.float32)
        return nn.losses.cross_entropy(logits, ids[:, 1:], reduction="mean")

    with_gradients = nn.value_and_grad(model, loss)

    def make_way(compiled):
        optimizer = mlx.optimizers.AdamW(learning_rate=1e-3, weight_decay=0.0, bias_correction=True)
        optimizer.init(model.trainable_parameters())

        def step(ids):
            value, gradients = with_gradients(ids)
            optimizer.update(model, gradients)
            return value

        state = [model.state, optimizer.state]
        call = mx.compile(step, inputs=state, outputs=state) if compiled else step

        def run():
            value = call(ids)
            mx.eval(value, state)
            return value.item()

        def losses():
            model.load_weights(start, strict=False)
            optimizer.init(model.trainable_parameters())
            return {"losses": [run() for _ in range(3)]}

        return (lambda: (run(), None)[1]), losses

    made = {way: make_way(way == "compile") for way in ("eager", "compile")}
    return peer.Entry({way: m[0] for way, m in made.items()}, {way: m[1] for way, m in made.items()})


def make_load(keys):
    """From opening the files to the first token's logits."""

    def logits():
        out = load_model(keys)(load(keys["inputs"], "ids", None)[None])[:, -1]
        mx.eval(out)
        return out

    ways = {"eager": lambda: (logits(), None)[1]}
    return peer.Entry(ways, {"eager": lambda: {"logits": numpy.array(logits().astype(mx.float32))}})


def make_generation(name, keys):
    from mlx_lm.models.cache import make_prompt_cache

    model = load_model(keys)
    ids = load(keys["inputs"], "ids", None)[None]
    tokens = keys.number("tokens", 32)

    def run():
        start, cache = time.perf_counter(), make_prompt_cache(model)
        token = model(ids, cache=cache)[:, -1].argmax(-1)
        mx.eval(token)
        if name == "prompt":
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(tokens - 1):
            token = model(token[:, None], cache=cache)[:, -1].argmax(-1)
            mx.eval(token)
        return (time.perf_counter() - start) / (tokens - 1)

    def results():
        cache = make_prompt_cache(model)
        mx.eval(model(ids[:, :-1], cache=cache))
        return {"logits": numpy.array(model(ids[:, -1:], cache=cache)[:, -1].astype(mx.float32))}

    return peer.Entry({"eager": run}, {"eager": results})


def make(name, keys):
    mx.set_default_device(mx.cpu)
    if name == "train_step":
        return make_training(keys)
    if name in ("prompt", "generate"):
        return make_generation(name, keys)
    if name == "load":
        return make_load(keys)
    if name in OPERATIONS or name == "add_chain":
        return make_operation(name, keys)
    return None


if __name__ == "__main__":
    peer.serve(",".join(f"{p}-{importlib.metadata.version(p)}" for p in ("mlx", "mlx-lm")), make)
