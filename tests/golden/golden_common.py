"""What the golden scripts share: determinism, writing files, logits and greedy decoding."""
import json
import platform

import peft
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

IGNORE = -100  # the label of a position that is not trained


def setup():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "safetensors": safetensors.__version__,
        "tokenizers": tokenizers.__version__,
    }


def generator(seed):
    return torch.Generator().manual_seed(seed)


def write_tensors(path, tensors):
    """Token ids, labels and lengths are written as i32, everything else as f32."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def plain(t):
        t = t.detach().contiguous().clone()
        return t.float() if t.is_floating_point() else t.int()

    save_file({name: plain(t) for name, t in tensors.items()}, str(path))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def pad(rows, value):
    """Right-pads lists of integers to one [rows, longest] tensor."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows])


def mask_of(lengths):
    """[rows, longest]: true at the positions before each length."""
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]


@torch.no_grad()
def logits_of(model, ids):
    """Logits [T, V] of one sequence."""
    return model(input_ids=torch.tensor([ids])).logits[0]


@torch.no_grad()
def greedy(model, prompt, steps):
    """The greedy continuation, without a cache, and the smallest gap between the best two logits."""
    ids, gap = list(prompt), float("inf")
    for _ in range(steps):
        best = logits_of(model, ids)[-1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt):], gap
