"""Training with PEFT and generation with transformers, on the directories that make_model.py writes."""

import gc
import statistics
import time

import numpy
import torch
import torch.nn.functional as F

WARM_STEPS = 3
LEARNING_RATE = 1e-3


def free():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def load(directory):
    from transformers import AutoModelForCausalLM

    options = dict(dtype=torch.bfloat16, device_map="cuda", attn_implementation="sdpa")
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def load_ids(path):
    return torch.from_numpy(numpy.load(path)).long().cuda()


def failure(why):
    if isinstance(why, torch.OutOfMemoryError):
        return {"error": "out of memory"}
    return {"error": f"{type(why).__name__}: {why}"[:300]}


# ---- training ----


class Trainer:
    """The adapter's parameters are f32, as PEFT makes them beside a bf16 model; their products may use TF32."""

    def __init__(self, request):
        from peft import PeftModel

        base = load(request["model"])
        base.config.use_cache = False
        self.model = PeftModel.from_pretrained(base, request["adapter"], is_trainable=True)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]

    def loss(self, ids):
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    def restart(self):
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start):
                parameter.copy_(start)
                parameter.grad = None

    def run(self, request):
        """Losses of the first steps, then seconds of each of the others; the adapter is fresh."""
        torch.compiler.reset()
        self.restart()
        free()
        ids = load_ids(request["ids"])
        optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        function = torch.compile(self.loss, dynamic=False) if request["way"] == "compile" else self.loss
        losses, seconds, host = [], [], []
        for _ in range(WARM_STEPS + request["steps"]):
            start = time.perf_counter()
            loss = function(ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            host.append(time.perf_counter() - start)
            losses.append(float(loss.detach()))  # waits
            seconds.append(time.perf_counter() - start)
        tokens = ids.shape[0] * (ids.shape[1] - 1)
        return {
            "losses": losses[:WARM_STEPS], "first_seconds": seconds[0], "seconds": seconds[WARM_STEPS:],
            "tokens_per_second": tokens / statistics.median(seconds[WARM_STEPS:]),
            "host_seconds": statistics.median(host[WARM_STEPS:]), "peak_bytes": torch.cuda.max_memory_allocated(),
        }  # fmt: skip


def train(request):
    """request: model, adapter, runs of (ids, way, steps). A run that fails says why; the others go on."""
    start = time.perf_counter()
    trainer = Trainer(request)
    torch.cuda.synchronize()
    found = {"load_seconds": time.perf_counter() - start, "runs": []}
    for run in request["runs"]:
        try:
            found["runs"].append(trainer.run(run))
        except Exception as why:
            found["runs"].append(failure(why))
    return found


# ---- generation ----


@torch.inference_mode()
def prompt_seconds(model, ids):
    """From the prompt to its first token."""
    found = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        int(model(input_ids=ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        found.append(time.perf_counter() - start)
    return statistics.median(found[2:])


def generate_seconds(model, ids, tokens, options):
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, **options)
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def tokens_per_second(model, ids, tokens, options):
    """Behind the first token. The first call compiles."""
    for count in (tokens + 1, 1):
        generate_seconds(model, ids, count, options)
    all_tokens = statistics.median(generate_seconds(model, ids, tokens + 1, options) for _ in range(3))
    return tokens / (all_tokens - generate_seconds(model, ids, 1, options))


WAYS = {"dynamic": {}, "static": {"cache_implementation": "static"}}


def generate(request):
    """request: model, ids of the start, tokens, ways, logits (where to write those of the last id), and prompt: ids
    whose first token is waited for."""
    model = load(request["model"]).eval()
    ids, found = load_ids(request["ids"])[None], {"ways": {}}
    with torch.inference_mode():
        numpy.save(request["logits"], model(input_ids=ids).logits[0, -1].float().cpu().numpy())
    for way in request["ways"]:
        try:
            found["ways"][way] = {"tokens_per_second": tokens_per_second(model, ids, request["tokens"], WAYS[way])}
        except Exception as why:
            found["ways"][way] = failure(why)
    if request.get("prompt"):
        found["prompt_seconds"] = prompt_seconds(model, load_ids(request["prompt"])[None])
    return found
