"""Small random models of each family with logits, greedy tokens and PEFT adapters."""
import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

import golden_common as common

STEPS = 64           # greedy tokens
MIN_GAP = 1e-3       # between the best two logits of every greedy step
MAX_ROUNDING = 1e-5  # a sequence alone against the same in a batch: the model is well conditioned
MIN_KINDS = 12       # different tokens in a greedy run, else a stuck model would pass
EOS = 2
LENGTHS = (11, 17)
PROMPT = 7

QV = {"target_modules": ["q_proj", "v_proj"]}
ALL = {"target_modules": "all-linear"}
PATTERN = {
    "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"],
    "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 5},
    "alpha_pattern": {"layers.0.mlp.down_proj": 3, "o_proj": 16},
    "use_rslora": True,
}

SMALL = {"num_hidden_layers": 2, "initializer_range": 0.02, "max_position_embeddings": 256}

# name: model class, config class, config, how to save, adapter name, adapter options
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {
        "vocab_size": 97, "hidden_size": 28, "intermediate_size": 38, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": True,
    }, {}, "adapter-qv", QV),
    "llama-rope3": (LlamaForCausalLM, LlamaConfig, {
        "vocab_size": 89, "hidden_size": 26, "intermediate_size": 35, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True, "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    }, {}, "adapter-all", ALL),
    "llama-bias": (LlamaForCausalLM, LlamaConfig, {
        "vocab_size": 83, "hidden_size": 20, "intermediate_size": 31, "num_attention_heads": 5,
        "num_key_value_heads": 5, "head_dim": 4, "attention_bias": True,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
    }, {}, "adapter-all", ALL),
    "llama-bf16": (LlamaForCausalLM, LlamaConfig, {
        "vocab_size": 97, "hidden_size": 28, "intermediate_size": 38, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 6, "tie_word_embeddings": False,
    }, {"dtype": torch.bfloat16, "max_shard_size": "9KB"}, "adapter-qv", QV),
    "mistral": (MistralForCausalLM, MistralConfig, {
        "vocab_size": 101, "hidden_size": 24, "intermediate_size": 37, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False,
        "sliding_window": None, "rms_norm_eps": 1e-5,
    }, {}, "adapter-pattern", PATTERN),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {
        "vocab_size": 103, "hidden_size": 30, "intermediate_size": 41, "num_attention_heads": 5,
        "num_key_value_heads": 1, "tie_word_embeddings": True, "use_sliding_window": False,
        "rope_theta": 1000000.0,
    }, {}, "adapter-qv", QV),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {
        "vocab_size": 107, "hidden_size": 22, "intermediate_size": 33, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False,
        "use_sliding_window": False, "rope_theta": 1000000.0,
    }, {}, "adapter-all", ALL),
}


def load(name):
    """The model saved as `name` below the working directory, in f32."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def fill(model, gen):
    """Random weights whose layers outweigh the embedding, so that logits depend on the whole context."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if "norm" in name:
            p.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            p.copy_(0.3 * noise)
        elif "embed" in name:
            p.copy_(0.3 * noise)
        else:
            p.copy_((1.5 if "proj" in name else 1.0) * noise / p.shape[1] ** 0.5)


@torch.no_grad()
def fill_adapter(model, gen):
    """A as PEFT scales it; B not zero, so that the adapter changes every logit."""
    for name, p in model.named_parameters():
        if "lora_" in name:
            scale = 1 / p.shape[1] ** 0.5 if "lora_A" in name else 0.25
            p.copy_(scale * torch.randn(p.shape, generator=gen))


def lora_config(options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
                         "task_type": "CAUSAL_LM", **options})


def save_adapter(model, folder):
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def random_ids(gen, count, vocab):
    return torch.randint(3, vocab, (count,), generator=gen).tolist()


def outputs(model, sequences, prompt):
    """Logits of each sequence and of both as a batch, and greedy tokens; and how sure they are."""
    result = {f"logits.{i}": common.logits_of(model, ids) for i, ids in enumerate(sequences)}
    lengths = torch.tensor([len(ids) for ids in sequences])
    mask = common.mask_of(lengths)
    with torch.no_grad():
        batch = model(input_ids=common.pad(sequences, 0), attention_mask=mask.long()).logits
    result["batch.logits"] = batch * mask[..., None]
    rounding = max(float((batch[i, :len(ids)] - result[f"logits.{i}"]).abs().max())
                   for i, ids in enumerate(sequences))
    tokens, gap = common.greedy(model, prompt, STEPS)
    result["greedy.tokens"] = torch.tensor(tokens)
    return result, {"min_gap": gap, "rounding": rounding}


def good(result, quality):
    tokens = result["greedy.tokens"].tolist()
    return (quality["min_gap"] > MIN_GAP and quality["rounding"] < MAX_ROUNDING
            and len(set(tokens)) >= MIN_KINDS and EOS not in tokens)


def attempt(folder, spec, seed):
    """Makes one model from one seed; None when its greedy runs are not well separated."""
    model_class, config_class, options, save, adapter, adapter_options = spec
    gen = common.generator(seed)
    model = model_class(config_class(**SMALL, **options))
    fill(model, gen)
    shutil.rmtree(folder, ignore_errors=True)
    how = dict(save)
    model.to(how.pop("dtype", torch.float32)).save_pretrained(folder, **how)

    model = load(folder.name)
    sequences = [random_ids(gen, n, options["vocab_size"]) for n in LENGTHS]
    prompt = random_ids(gen, PROMPT, options["vocab_size"])
    tensors = {f"ids.{i}": torch.tensor(ids) for i, ids in enumerate(sequences)}
    tensors["batch.ids"] = common.pad(sequences, 0)
    tensors["batch.lengths"] = torch.tensor(LENGTHS)
    tensors["greedy.prompt"] = torch.tensor(prompt)
    base, base_quality = outputs(model, sequences, prompt)
    if not good(base, base_quality):
        return None

    tuned = get_peft_model(model, lora_config(adapter_options))
    fill_adapter(tuned, gen)
    save_adapter(tuned, folder / adapter)
    tuned = PeftModel.from_pretrained(load(folder.name), folder / adapter).eval()
    with_adapter, adapter_quality = outputs(tuned, sequences, prompt)
    if not good(with_adapter, adapter_quality):
        return None
    change = (with_adapter["batch.logits"] - base["batch.logits"]).abs().max()
    assert change > 0.1 and not torch.equal(base["greedy.tokens"], with_adapter["greedy.tokens"])

    tensors |= base | {f"{adapter}.{name}": t for name, t in with_adapter.items()}
    common.write_tensors(folder / "golden.safetensors", tensors)
    return {
        "model": folder.name,
        "seed": seed,
        "sequences": list(LENGTHS),
        "greedy_steps": STEPS,
        "adapters": [adapter],
        "quality": {"base": base_quality, adapter: adapter_quality},
        "max_logit": float(base["batch.logits"].abs().max()),
        "tolerance": 1e-4,
        "versions": common.versions(),
    }


def make(root):
    """Adapters name their base model by the path they were trained from: here, its bare name."""
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    for name, spec in MODELS.items():
        found = None
        seed = 0
        while found is None:
            seed += 1
            found = attempt(root / name, spec, seed)
        common.write_json(root / name / "golden.json", found)
        print(f"{name}: seed {seed}, {found['quality']}, largest logit {found['max_logit']:.2f}")
