"""Training runs: LoRA with PEFT from a fixed start, and full fine-tuning, step by step."""
import math
import os
import shutil

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model, get_peft_model_state_dict

import golden_common as common
from golden_models import ALL, MODELS, QV, fill_adapter, load, lora_config, save_adapter

LORA_STEPS = 30
FULL_STEPS = 10
ROWS = 3
WARMUP = 5
OPTIMIZER = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
MAX_NORM = 1.0
LORA_LR = 1e-2
FULL_LR = 3e-3
MAX_ROUNDING = 2e-5  # relative, of the losses in f32 against the same run in f64
TARGETS = {"llama": ALL, "qwen2": QV}


def f32(value):
    """The nearest f32, so that a reader of the file uses the very same number."""
    return float(torch.tensor(value, dtype=torch.float32))


def warmup_cosine(step):
    """Linear to the peak over WARMUP steps, then half a cosine down to a tenth of it."""
    if step < WARMUP:
        return f32(LORA_LR * (step + 1) / WARMUP)
    done = (step - WARMUP) / (LORA_STEPS - WARMUP)
    return f32(LORA_LR * (0.1 + 0.45 * (1 + math.cos(math.pi * done))))


def make_batches(vocab, gen):
    """Counting sequences of varying length; labels are the ids, -100 on the prompt and the padding."""
    batches = []
    for _ in range(LORA_STEPS):
        rows, labels = [], []
        for _ in range(ROWS):
            length = int(torch.randint(4, 16, (1,), generator=gen))
            prompt = int(torch.randint(1, length - 1, (1,), generator=gen))
            start, stride = torch.randint(0, vocab, (2,), generator=gen).tolist()
            ids = [3 + (start + (1 + stride % 3) * t) % (vocab - 3) for t in range(length)]
            rows.append(ids)
            labels.append([common.IGNORE] * prompt + ids[prompt:])
        batches.append({"ids": common.pad(rows, 0), "labels": common.pad(labels, common.IGNORE),
                        "lengths": torch.tensor([len(row) for row in rows])})
    return batches


def loss_of(model, batch):
    """Mean over the labels that count; the logits at t are judged by the label at t + 1."""
    mask = common.mask_of(batch["lengths"]).long()
    logits = model(input_ids=batch["ids"], attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(),
                           ignore_index=common.IGNORE)


def run(model, batches, lrs):
    """Trains in place; returns losses before each update and gradient norms before clipping."""
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=lrs[0], foreach=False, **OPTIMIZER)
    model.train()
    losses, norms = [], []
    for batch, lr in zip(batches, lrs):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, MAX_NORM).detach())
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def checked_run(start, final, batches, lrs):
    """The tensors of one run of start(), once the same run in f64 (but for the norms' and the
    rotations' own casts to f32) has shown how far rounding carries."""
    model, exact_model = start(), start().double()
    losses, norms = run(model, batches, lrs)
    exact_losses, exact_norms = run(exact_model, batches, lrs)
    trained, exact = final(model), final(exact_model)
    rounding = {
        "loss": float(((losses - exact_losses) / exact_losses).abs().max()),
        "grad_norm": float(((norms - exact_norms) / exact_norms).abs().max()),
        "final": max(float((trained[name] - exact[name]).abs().max()) for name in trained),
    }
    assert rounding["loss"] < MAX_ROUNDING, rounding
    late = slice(len(lrs) // 2, len(lrs))
    with torch.no_grad():
        untrained = torch.stack([loss_of(start(), batch) for batch in batches[late]]).mean()
    assert losses[late].mean() < untrained - 0.05
    tensors = {"loss": losses, "grad_norm": norms, "lr": torch.tensor(lrs)}
    tensors |= {f"final.{name}": t for name, t in trained.items()}
    facts = {"steps": len(lrs), "rounding": rounding,
             "late_loss": float(losses[late].mean()), "late_loss_untrained": float(untrained)}
    return tensors, facts


def parameters(model):
    """Every parameter once: tied ones under their first name."""
    return {name: p.detach() for name, p in model.named_parameters()}


def make_one(root, name, seed):
    folder = root / name / "train"
    shutil.rmtree(folder, ignore_errors=True)
    gen = common.generator(seed)
    batches = make_batches(MODELS[name][2]["vocab_size"], gen)
    common.write_tensors(folder / "batches.safetensors",
                         {f"{i:02d}.{key}": t for i, b in enumerate(batches) for key, t in b.items()})

    tuned = get_peft_model(load(name), lora_config(TARGETS[name]))
    fill_adapter(tuned, gen)
    with torch.no_grad():
        for key, p in tuned.named_parameters():
            if "lora_B" in key:
                p.zero_()
    save_adapter(tuned, folder / "adapter-init")

    def adapted():
        return PeftModel.from_pretrained(load(name), folder / "adapter-init", is_trainable=True)

    plans = {
        "lora-constant": (adapted, get_peft_model_state_dict, [f32(LORA_LR)] * LORA_STEPS),
        "lora-cosine": (adapted, get_peft_model_state_dict, [warmup_cosine(i) for i in range(LORA_STEPS)]),
    }
    if name == "llama":
        plans["full"] = (lambda: load(name), parameters, [f32(FULL_LR)] * FULL_STEPS)
    runs = {}
    for key, (start, final, lrs) in plans.items():
        tensors, runs[key] = checked_run(start, final, batches, lrs)
        common.write_tensors(folder / f"{key}.safetensors", tensors)
        print(f"{name} {key}: {runs[key]}")
    beta1, beta2 = OPTIMIZER["betas"]
    common.write_json(folder / "train.json", {
        "model": name, "seed": seed, "rows": ROWS, "ignore_index": common.IGNORE,
        "optimizer": {"name": "adamw", "beta1": beta1, "beta2": beta2, "eps": OPTIMIZER["eps"],
                      "weight_decay": OPTIMIZER["weight_decay"]},
        "max_norm": MAX_NORM, "warmup": WARMUP, "tolerance": 1e-4, "runs": runs,
        "versions": common.versions(),
    })


def make(root):
    """Needs the models; adapters name their base model as golden_models does."""
    os.chdir(root)
    for seed, name in enumerate(TARGETS, start=11):
        make_one(root, name, seed)
