#!/usr/bin/env python3
"""Check that PEFT reads an adapter as its writer meant it.

    VENV/bin/python tests/golden/adapter_check.py MODEL ADAPTER LOGITS [--tolerance 1e-4]

MODEL is a Hugging Face directory, ADAPTER a PEFT adapter directory, LOGITS a safetensors file
with pairs `ids.N` [T] i32 and `logits.N` [T, V] f32: the writer's logits of model and adapter.
Exit code 0: every pair agrees; 1: it does not, or the adapter's tensors are not exactly those
that PEFT expects; 2: usage. It needs the virtual environment of make_golden.py; as torch is
large, this is a target of its own and no part of the ordinary tests.
"""
import argparse
import re
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, logging


def load(model_folder, adapter_folder):
    """The adapted model in f32; PEFT itself only warns of tensors that are missing or left over."""
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    want = {name: t.shape for name, t in
            get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    stored = load_file(Path(adapter_folder) / "adapter_model.safetensors")
    have = {name: t.shape for name, t in stored.items()}
    wrong = sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))
    if wrong:
        sys.exit("adapter_check: tensors missing, left over or of another shape: " + ", ".join(wrong))
    return model


@torch.no_grad()
def largest_difference(model, ids, logits):
    got = model(input_ids=ids.long()[None]).logits[0]
    if got.shape != logits.shape:
        sys.exit(f"adapter_check: logits: expected {list(got.shape)}, got {list(logits.shape)}")
    return float((got - logits).abs().max())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("logits")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()

    model = load(options.model, options.adapter)
    tensors = load_file(options.logits)
    numbers = sorted(int(m[1]) for m in (re.fullmatch(r"ids\.(\d+)", name) for name in tensors) if m)
    if not numbers:
        sys.exit(f"adapter_check: {options.logits}: no tensor ids.N")
    failed = False
    for n in numbers:
        difference = largest_difference(model, tensors[f"ids.{n}"], tensors[f"logits.{n}"])
        agrees = difference <= options.tolerance  # false for NaN too
        failed |= not agrees
        print(f"sequence {n}: largest difference {difference:.3g}, {'ok' if agrees else 'too large'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
