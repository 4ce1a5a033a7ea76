"""A model directory of Qwen2's architecture with random weights, and a LoRA adapter for it as PEFT writes them.

    python3 bench/make_model.py OUT [--dtype bf16|f32] [--hidden 896] [--layers 24] ... [--rank 8] [--adapted 24]

The sizes are Qwen2.5-0.5B's. OUT/adapter holds the adapter of all linear layers of the last blocks, as many as --adapted
says (all), f32, A and B both random. Standard library only: a weight is random bits whose upper byte is overwritten, so that it lies in ±[2^-7, 2^-5), which is what
initialisation with a deviation of about 0.02 looks like. The same arguments give the same files.
"""

import argparse
import json
import random
import struct
from pathlib import Path

LINEARS = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip
NAMES = {"bf16": "BF16", "f32": "F32"}
SIZES = {"bf16": 2, "f32": 4}
SIGN_AND_EXPONENT = bytes(0x3C | (b & 0x80) for b in range(256))


def random_values(generator, count, size):
    """`count` little-endian floats of `size` bytes."""
    data = bytearray()
    for start in range(0, count, 1 << 22):
        piece = bytearray(generator.randbytes(min(1 << 22, count - start) * size))
        piece[size - 1 :: size] = piece[size - 1 :: size].translate(SIGN_AND_EXPONENT)
        data += piece
    return data


def ones(count, size):
    return struct.pack("<f", 1.0)[4 - size :] * count


def write_safetensors(path, dtype, tensors, generator):
    """tensors: {name: shape}; norms hold ones."""
    size, header, offset = SIZES[dtype], {}, 0
    counts = {name: shape[0] * (shape[1] if len(shape) > 1 else 1) for name, shape in tensors.items()}
    for name, shape in tensors.items():
        end = offset + counts[name] * size
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, count in counts.items():
            norm = name.endswith("norm.weight")
            file.write(ones(count, size) if norm else random_values(generator, count, size))


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
        "num_key_value_heads": a.kv_heads, "vocab_size": a.vocab, "tie_word_embeddings": True,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "initializer_range": 0.02,
        "use_sliding_window": False, "attention_dropout": 0.0, "eos_token_id": a.vocab - 1, "use_cache": True,
        "torch_dtype": {"bf16": "bfloat16", "f32": "float32"}[a.dtype],
    }  # fmt: skip


def adapter_config(a):
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": a.rank, "lora_alpha": 2 * a.rank, "lora_dropout": 0.0,
        "bias": "none", 
        "target_modules": list(LINEARS), "layers_to_transform": adapted(a), "layers_pattern": "layers", "inference_mode": False, "fan_in_fan_out": False,
        "base_model_name_or_path": "random",
    }  # fmt: skip


def make_model(a, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config(a), indent=2) + "\n")
    write_safetensors(out / "model.safetensors", a.dtype, model_tensors(a), random.Random(a.seed))


def make_adapter(a, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(adapter_config(a), indent=2) + "\n")
    write_safetensors(out / "adapter_model.safetensors", "f32", adapter_tensors(a), random.Random(a.seed + 1))


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--dtype", choices=NAMES, default="bf16")
    sizes = dict(hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151936, rank=8, adapted=0, seed=1)
    for name, size in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = parse()
    make_model(arguments, Path(arguments.out))
    make_adapter(arguments, Path(arguments.out) / "adapter")
