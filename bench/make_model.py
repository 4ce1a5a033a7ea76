"""A model directory of Qwen2's architecture with random weights, and a LoRA adapter for it as PEFT writes them.

    python3 bench/make_model.py OUT [--dtype bf16|f32] [--hidden 896] [--layers 24] ... [--no-tie] [--rank 8]
                                [--adapted 24]

The sizes are Qwen2.5-0.5B's. OUT/adapter holds the adapter of all linear layers of the last blocks, as many as
--adapted says (all), f32, A and B both random. Standard library only: a weight is random bits whose upper byte is
overwritten, so that it lies in ±[2^-7, 2^-5), which is what initialisation with a deviation of about 0.02 looks like. One
block of such values is written again and again, each time from another place, by several threads: so large models are
made as fast as files can be written. The same arguments give the same files.
"""

import argparse
import json
import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LINEARS = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip
NAMES = {"bf16": "BF16", "f32": "F32"}
SIZES = {"bf16": 2, "f32": 4}
SIGN_AND_EXPONENT = bytes(0x3C | (b & 0x80) for b in range(256))


BLOCK = 1 << 25  # values
STEP = 7 * BLOCK // 17 | 1  # odd: from one repetition to the next, so that no two begin alike


def random_block(generator, count, size):
    """`count` little-endian floats of `size` bytes."""
    block = bytearray(generator.randbytes(count * size))
    block[size - 1 :: size] = block[size - 1 :: size].translate(SIGN_AND_EXPONENT)
    return memoryview(block)


def ones(count, size):
    return struct.pack("<f", 1.0)[4 - size :] * count


def pieces(offset, counts, block, size):
    """(offset in the file, bytes) of all tensors; norms hold ones."""
    values, start = len(block) // size, 0
    for name, left in counts.items():
        if name.endswith("norm.weight"):
            yield offset, ones(left, size)
            offset += left * size
            continue
        while left > 0:
            start = (start + STEP) % values
            count = min(left, values - start)
            yield offset, block[start * size : (start + count) * size]
            offset, left = offset + count * size, left - count


def write_at(file, offset, data):
    data = memoryview(data)
    while len(data) > 0:
        done = os.pwrite(file, data, offset)
        offset, data = offset + done, data[done:]


def write_safetensors(path, dtype, tensors, generator):
    """tensors: {name: shape}."""
    size, header, offset = SIZES[dtype], {}, 0
    counts = {name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in tensors.items()}
    for name, shape in tensors.items():
        end = offset + counts[name] * size
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    block = random_block(generator, min(BLOCK, offset // size), size)
    with open(path, "wb") as file, ThreadPoolExecutor(8) as writers:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        parts = pieces(file.tell(), counts, block, size)
        list(writers.map(lambda part: write_at(file.fileno(), *part), parts))


def features(a):
    """(out, in) of each linear layer."""
    head = a.hidden // a.heads
    wide, narrow = (a.hidden, a.hidden), (a.kv_heads * head, a.hidden)
    return {
        "q_proj": wide, "k_proj": narrow, "v_proj": narrow, "o_proj": wide,
        "gate_proj": (a.ffn, a.hidden), "up_proj": (a.ffn, a.hidden), "down_proj": (a.hidden, a.ffn),
    }  # fmt: skip


def model_tensors(a):
    tensors = {"model.embed_tokens.weight": [a.vocab, a.hidden]}
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = [a.hidden]
        for name, shape in features(a).items():
            tensors[f"{prefix}{LINEARS[name]}.{name}.weight"] = list(shape)
            if name in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{prefix}self_attn.{name}.bias"] = [shape[0]]
        tensors[prefix + "post_attention_layernorm.weight"] = [a.hidden]
    tensors["model.norm.weight"] = [a.hidden]
    if not a.tie:
        tensors["lm_head.weight"] = [a.vocab, a.hidden]
    return tensors


def adapted(a):
    return list(range(a.layers - (a.adapted or a.layers), a.layers))


def adapter_tensors(a):
    tensors = {}
    for layer in adapted(a):
        for name, (out, into) in features(a).items():
            path = f"base_model.model.model.layers.{layer}.{LINEARS[name]}.{name}"
            tensors[path + ".lora_A.weight"] = [a.rank, into]
            tensors[path + ".lora_B.weight"] = [out, a.rank]
    return tensors


def config(a):
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": a.hidden,
        "intermediate_size": a.ffn, "num_hidden_layers": a.layers, "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads, "vocab_size": a.vocab, "tie_word_embeddings": a.tie,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "initializer_range": 0.02,
        "use_sliding_window": False, "attention_dropout": 0.0, "eos_token_id": a.vocab - 1, "use_cache": True,
        "torch_dtype": {"bf16": "bfloat16", "f32": "float32"}[a.dtype],
    }  # fmt: skip


def adapter_config(a):
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": a.rank, "lora_alpha": 2 * a.rank, "lora_dropout": 0.0,
        "bias": "none", "target_modules": list(LINEARS), "layers_to_transform": adapted(a), "layers_pattern": "layers",
        "inference_mode": False, "fan_in_fan_out": False, "base_model_name_or_path": "random",
    }  # fmt: skip


def make_model(a, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config(a), indent=2) + "\n")
    write_safetensors(out / "model.safetensors", a.dtype, model_tensors(a), random.Random(a.seed))


def make_adapter(a, out):
    """The adapter alone: one model may have several, of other ranks."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(adapter_config(a), indent=2) + "\n")
    generator = random.Random(f"{a.seed} adapter")
    write_safetensors(out / "adapter_model.safetensors", "f32", adapter_tensors(a), generator)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=NAMES, default="bf16")
    parser.add_argument("--tie", action=argparse.BooleanOptionalAction, default=True, help="the head is the embedding")
    sizes = dict(hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151936, rank=8, adapted=0, seed=1)
    for name, size in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse()
    make_model(arguments, Path(arguments.out))
    make_adapter(arguments, Path(arguments.out) / "adapter")
