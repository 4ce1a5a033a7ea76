"""What is measured: operations, models, training steps, generation, growth."""

import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Qwen2.5's shapes, as options of make_model.py.
MODELS = {
    "0.5b": dict(hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2, vocab=151936, tie=True),
    "1.5b": dict(hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, vocab=151936, tie=True),
    "7b": dict(hidden=3584, ffn=18944, layers=28, heads=28, kv_heads=4, vocab=151936, tie=False),
    # For trying the programs out where there is no GPU.
    "tiny": dict(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, vocab=256, tie=True),
}

# Rows of gpu_ops at which all programs run on a CPU in a moment; its own table has those of a GPU.
SMALL_OPERATIONS = """
copy matmul-64x64x64 lora-24x64-r8 linear-24x64x64 linear_lora-24x64x64-r8 linear_dx-24x64x64
linear_lora_dx-24x64x64-r8 softmax-24x512 rms_norm-24x512
""".split()
SMALL_OVERHEADS = ["linear_lora-24x64x64-r8 linear-24x64x64"]


@dataclass
class Train:
    model: str
    rows: int
    length: int
    rank: int = 8
    ways: tuple = ("eager",)

    @property
    def key(self):
        return f"{self.model} {self.rows}x{self.length}" + (f" r{self.rank}" if self.rank != 8 else "")


# The compiled ways are the ones that were worth their minute of compilation.
TRAINING = [
    Train("0.5b", 8, 512),
    Train("0.5b", 8, 2048, ways=("eager", "compile")),
    Train("1.5b", 8, 1024),
    Train("7b", 4, 1024, ways=("eager", "compile")),
]
SMALL_TRAINING = [Train("tiny", 2, 64)]

GENERATION = ["0.5b", "7b"]  # one sequence: 64 tokens, then NEW_TOKENS more
PROMPT_MODEL, PROMPT_LENGTH, START_LENGTH, NEW_TOKENS = "7b", 2048, 64, 128

GROWTH = {
    "length": [Train("0.5b", 1, 512 << i) for i in range(7)],
    "batch": [Train("0.5b", 1 << i, 512) for i in range(6)],
    "rank": [Train("0.5b", 8, 512, rank=4 << i) for i in range(7)],
    "model": [Train(name, 4, 1024) for name in ("0.5b", "1.5b", "7b")],
}
SMALL_GROWTH = {
    "length": [Train("tiny", 1, 32 << i) for i in range(3)],
    "rank": [Train("tiny", 2, 32, rank=4 << i) for i in range(3)],
}


def linear_parameters(model):
    """Of the layers' products, without the head."""
    m = MODELS[model]
    head = m["hidden"] // m["heads"]
    return m["layers"] * (2 * m["hidden"] * (m["hidden"] + m["kv_heads"] * head) + 3 * m["hidden"] * m["ffn"])


def attention_flops(model, length):
    """Of one token, forward, with all tokens before it half on average."""
    m = MODELS[model]
    return m["layers"] * 2 * 2 * m["hidden"] * (length + 1) / 2


def training_flops(model, length):
    """Of one token: the frozen products forward and by the input, attention forward and (five products for two)
    backward. What adapters add is left out."""
    m = MODELS[model]
    return 4 * (linear_parameters(model) + m["vocab"] * m["hidden"]) + 3.5 * attention_flops(model, length)


def prompt_flops(model, length):
    """Of all tokens; the head sees the last alone."""
    m = MODELS[model]
    return length * (2 * linear_parameters(model) + attention_flops(model, length)) + 2 * m["vocab"] * m["hidden"]


def weight_bytes(model):
    """Read for each token: layers and head, bf16."""
    m = MODELS[model]
    return 2 * (linear_parameters(model) + m["vocab"] * m["hidden"])


def processors():
    return len(os.sched_getaffinity(0))
