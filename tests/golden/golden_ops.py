"""Values and gradients of single operations."""
import math

import torch
import torch.nn.functional as F

import golden_common as common


class Recorder:
    """Collects cases: named tensors, and one JSON row of attributes a case."""

    def __init__(self):
        self.gen = common.generator(7)
        self.tensors = {}
        self.cases = []

    def randn(self, *shape, scale=1.0):
        return scale * torch.randn(shape, generator=self.gen)

    def add(self, name, op, inputs, function, wanted, attrs=None, mask=None):
        """Runs function(**inputs); with a random output gradient, also its gradients for `wanted`.

        `mask`, where given, marks the output rows that count: elsewhere output and gradient are 0."""
        inputs = dict(inputs)
        for key in wanted:
            inputs[key] = inputs[key].clone().requires_grad_()
        out = function(**inputs)
        if mask is not None:
            out = torch.where(mask, out, torch.zeros(()))
        grad = torch.ones(()) if out.dim() == 0 else self.randn(*out.shape)
        if mask is not None:
            grad = torch.where(mask, grad, torch.zeros(()))
        grads = torch.autograd.grad(out, [inputs[key] for key in wanted], grad)
        for key, value in inputs.items():
            self.tensors[f"{name}.in.{key}"] = value
        self.tensors[f"{name}.out"] = out
        self.tensors[f"{name}.grad_out"] = grad
        for key, value in zip(wanted, grads):
            self.tensors[f"{name}.grad.{key}"] = value
        self.case(name, op, list(inputs), wanted, attrs)

    def case(self, name, op, inputs, wanted, attrs):
        self.cases.append({"name": name, "op": op, "inputs": inputs, "grads": list(wanted),
                           "attrs": attrs or {}})


def reductions(r):
    x = r.randn(3, 4, 5, scale=2.0)
    x[0, 1, 2], x[1, 0, 3], x[2, 3, 4], x[2, 3, 0] = 1e4, -1e4, 1e4, -1e4
    masked = r.randn(3, 5)
    masked[0, 2:], masked[2, 0] = -math.inf, -math.inf
    for dim in range(3):
        r.add(f"softmax.dim{dim}", "softmax", {"x": x}, lambda x: F.softmax(x, dim), ["x"], {"dim": dim})
        r.add(f"logsumexp.dim{dim}", "logsumexp", {"x": x}, lambda x: torch.logsumexp(x, dim), ["x"],
              {"dim": dim})
    r.add("softmax.masked", "softmax", {"x": masked}, lambda x: F.softmax(x, 1), ["x"], {"dim": 1})
    r.add("logsumexp.masked", "logsumexp", {"x": masked}, lambda x: torch.logsumexp(x, 1), ["x"],
          {"dim": 1})


def activations(r):
    x = torch.cat([torch.linspace(-12, 12, 49), r.randn(42, scale=3.0)]).reshape(7, 13)
    r.add("gelu.erf", "gelu", {"x": x}, lambda x: F.gelu(x), ["x"], {"approximate": "none"})
    r.add("gelu.tanh", "gelu", {"x": x}, lambda x: F.gelu(x, approximate="tanh"), ["x"],
          {"approximate": "tanh"})
    r.add("silu", "silu", {"x": x}, lambda x: F.silu(x), ["x"])


def norms(r):
    x = (r.randn(2, 3, 7) + 0.5) * torch.tensor([1e-3, 1.0, 100.0]).reshape(1, 3, 1)
    weight, bias = 1 + r.randn(7, scale=0.3), r.randn(7, scale=0.3)
    for tag, eps in (("1e-6", 1e-6), ("1e-5", 1e-5), ("1e-3", 1e-3)):
        attrs = {"eps": eps}
        r.add(f"layer_norm.weight.eps{tag}", "layer_norm", {"x": x, "weight": weight, "bias": bias},
              lambda x, weight, bias: F.layer_norm(x, (7,), weight, bias, eps), ["x", "weight", "bias"],
              attrs)
        r.add(f"layer_norm.plain.eps{tag}", "layer_norm", {"x": x},
              lambda x: F.layer_norm(x, (7,), eps=eps), ["x"], attrs)
        r.add(f"rms_norm.weight.eps{tag}", "rms_norm", {"x": x, "weight": weight},
              lambda x, weight: F.rms_norm(x, (7,), weight, eps), ["x", "weight"], attrs)
        r.add(f"rms_norm.plain.eps{tag}", "rms_norm", {"x": x}, lambda x: F.rms_norm(x, (7,), eps=eps),
              ["x"], attrs)


def rope(x, positions, theta, interleaved):
    """Rotates pairs (i, i + D/2) of the last dimension, or (2i, 2i + 1) when interleaved."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half, dtype=torch.float32) / half)
    angle = positions[..., None, None].float() * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


def rotations(r):
    x = r.randn(2, 5, 3, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 60, 61, 250]])
    for tag, interleaved in (("half", False), ("interleaved", True)):
        r.add(f"rope.{tag}", "rope", {"x": x, "positions": positions},
              lambda x, positions: rope(x, positions, 10000.0, interleaved), ["x"],
              {"theta": 10000.0, "layout": tag})


def losses(r):
    logits = r.randn(2, 4, 11, scale=2.0)
    logits[0, 0, 3] = 80.0
    some = torch.tensor([[3, common.IGNORE, 0, 10], [common.IGNORE, common.IGNORE, 7, 5]])
    every = torch.tensor([[3, 1, 0, 10], [2, 9, 7, 5]])
    for tag, labels in (("some", some), ("every", every)):
        r.add(f"cross_entropy.{tag}", "cross_entropy", {"logits": logits, "labels": labels},
              lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten(),
                                                     ignore_index=common.IGNORE),
              ["logits"], {"ignore_index": common.IGNORE, "reduction": "mean"})


def attention(q, k, v, lengths, causal):
    """softmax(q·k / sqrt(D))·v; query i of Tq stands at key position i + Tk - Tq."""
    tq, tk, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    seen = common.mask_of(lengths)[:, None, None, :tk].expand(-1, 1, tq, -1)
    if causal:
        seen = seen & (torch.arange(tk)[None, :] <= torch.arange(tq)[:, None] + tk - tq)
    heads = [t.repeat_interleave(n, dim=2).transpose(1, 2) for t, n in ((q, 1), (k, groups), (v, groups))]
    return F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2)


def attentions(r):
    rows = (  # name, Tq, Tk, heads, kv heads, head_dim, lengths, causal
        ("attention.causal", 7, 7, 6, 2, 10, [7, 7], True),
        ("attention.causal_lengths", 7, 7, 6, 2, 10, [7, 4, 1], True),
        ("attention.full_lengths", 5, 5, 4, 4, 6, [5, 3], False),
        ("attention.one_query", 1, 9, 6, 3, 8, [9, 9], True),
        ("attention.chunk", 3, 9, 4, 1, 8, [9], True),
    )
    for name, tq, tk, heads, kv_heads, dim, counts, causal in rows:
        lengths = torch.tensor(counts)
        inputs = {"q": r.randn(len(counts), tq, heads, dim), "k": r.randn(len(counts), tk, kv_heads, dim),
                  "v": r.randn(len(counts), tk, kv_heads, dim), "lengths": lengths}
        counted = common.mask_of(lengths)[:, tk - tq:, None, None]
        r.add(name, "attention", inputs, lambda q, k, v, lengths: attention(q, k, v, lengths, causal),
              ["q", "k", "v"], {"scale": dim ** -0.5, "causal": causal}, counted)


def loras(r):
    inputs = {"x": r.randn(2, 3, 7), "a": r.randn(4, 7), "b": r.randn(5, 4)}
    r.add("lora", "lora", inputs, lambda x, a, b: 2.0 * (x @ a.T) @ b.T, ["x", "a", "b"], {"scale": 2.0})


def optimizers(r):
    for tag, decay in (("plain", 0.0), ("decay", 0.1)):
        name = f"adamw.{tag}"
        p = torch.nn.Parameter(r.randn(3, 5))
        grads, lrs = r.randn(5, 3, 5), [0.01, 0.02, 0.02, 0.005, 0.0]
        grads[0, 0], grads[:, 2, 4] = 0.0, 0.0
        r.tensors |= {f"{name}.in.p": p.detach().clone(), f"{name}.in.grads": grads,
                      f"{name}.in.lr": torch.tensor(lrs)}
        optimizer = torch.optim.AdamW([p], betas=(0.9, 0.999), eps=1e-8, weight_decay=decay, foreach=False)
        states = []
        for grad, lr in zip(grads, r.tensors[f"{name}.in.lr"].tolist()):
            p.grad, optimizer.param_groups[0]["lr"] = grad.clone(), lr
            optimizer.step()
            state = optimizer.state[p]
            states.append([t.detach().clone() for t in (p, state["exp_avg"], state["exp_avg_sq"])])
        for key, steps in zip("pmv", zip(*states)):
            r.tensors[f"{name}.out.{key}"] = torch.stack(steps)
        r.case(name, "adamw", ["p", "grads", "lr"], [],
               {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay})


def clips(r):
    for tag, max_norm in (("above", 1.0), ("below", 100.0)):
        name = f"clip_grad_norm.{tag}"
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,))]
        for key, p in zip("ab", params):
            p.grad = r.randn(*p.shape)
            r.tensors[f"{name}.in.{key}"] = p.grad.clone()
        r.tensors[f"{name}.out.norm"] = torch.nn.utils.clip_grad_norm_(params, max_norm)
        for key, p in zip("ab", params):
            r.tensors[f"{name}.out.{key}"] = p.grad
        r.case(name, "clip_grad_norm", ["a", "b"], [], {"max_norm": max_norm})


def make(folder):
    r = Recorder()
    for group in (reductions, activations, norms, rotations, losses, attentions, loras, optimizers, clips):
        group(r)
    common.write_tensors(folder / "ops.safetensors", r.tensors)
    common.write_json(folder / "ops.json", {"versions": common.versions(), "cases": r.cases})
    print(f"ops: {len(r.cases)} cases, {len(r.tensors)} tensors")
