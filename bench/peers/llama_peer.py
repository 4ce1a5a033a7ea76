"""llama.cpp through llama-cpp-python: prompts and generation, with the model's own weights in a GGUF file; and its
library ggml for chains of additions kept as a program, as a graph that is built once.

The file is written beside the model at its first use, every tensor in the model's dtype but the norms and biases, which
llama.cpp wants in f32. It holds no vocabulary: ids go in and logits come out.
"""

import ctypes
import importlib.metadata
import json
import os
import struct
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy
import peer

NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


# ---- the file ----


def tensors_of(path):
    """(name, dtype, array of the elements' bits) of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = numpy.memmap(path, numpy.uint8, "r", 8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            kind = {"BF16": numpy.uint16, "F32": numpy.float32}[entry["dtype"]]
            yield name, entry["dtype"], data[begin:end].view(kind).reshape(entry["shape"])


def gguf_name(name):
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    ours = next(ours for ours in NAMES if rest.startswith(ours))
    return f"blk.{layer}.{NAMES[ours]}{rest[len(ours):]}"


def add_tensor(writer, name, dtype, values):
    if values.ndim == 1 and dtype == "BF16":
        values = (values.astype(numpy.uint32) << 16).view(numpy.float32)
    if values.dtype == numpy.uint16:
        writer.add_tensor(gguf_name(name), values.view(numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(gguf_name(name), numpy.ascontiguousarray(values))


def write_gguf(model, path):
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    for name, dtype, values in tensors_of(model / "model.safetensors"):
        add_tensor(writer, name, dtype, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_of(model):
    path = model / "model.gguf"
    if not path.exists():
        write_gguf(model, model / "model.gguf.part")
        os.replace(model / "model.gguf.part", path)
    return path


# ---- the model ----


class Model:
    """A context of llama.cpp; batches may be as long as the prompt."""

    def __init__(self, path, threads, room):
        silent = llama_cpp.llama_log_callback(lambda level, text, user: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        self.silent = silent
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = room, room, min(room, 512)
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def feed(self, ids):
        """Reads ids behind what was read; returns the last one's logits, borrowed until the next call."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (self.vocabulary,))


def make_load(open_model, ids):
    """From opening the file to the first token's logits."""

    def logits():
        model = open_model()
        start = model.feed(ids)[None].copy()
        model.close()
        return start

    return peer.Entry({"llama.cpp": lambda: (logits(), None)[1]}, {"llama.cpp": lambda: {"logits": logits()}})


# ---- chains of additions, of ggml itself ----


class Params(ctypes.Structure):  # ggml_init_params
    _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):  # ggml_cplan; what other versions have behind these is zero or written by ggml
    _fields_ = [
        ("work_size", ctypes.c_size_t), ("work", ctypes.c_void_p), ("threads", ctypes.c_int),
        ("rest", ctypes.c_void_p * 16),
    ]  # fmt: skip


def ggml(library, name, result, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


class Chain:
    """x + y + y + ..., built and planned once."""

    def __init__(self, folder, length, threads):
        p, size = ctypes.c_void_p, ctypes.c_size_t
        libraries = Path(llama_cpp.__file__).parent / "lib"
        base, cpu = (ctypes.CDLL(str(libraries / f"libggml-{part}.so")) for part in ("base", "cpu"))
        vector, data = ggml(base, "ggml_new_tensor_1d", p, p, ctypes.c_int, ctypes.c_int64), ggml(base, "ggml_get_data", p, p)
        add = ggml(base, "ggml_add", p, p, p, p)
        ggml(cpu, "ggml_cpu_init", None)()
        room = length * 1024 + (1 << 20)
        context = ggml(base, "ggml_init", p, Params)(Params(room, None, False))
        x, y = vector(context, 0, 16), vector(context, 0, 16)
        for tensor, name in ((x, "x"), (y, "y")):
            values = numpy.load(folder / f"{name}.npy")
            ctypes.memmove(data(tensor), values.ctypes.data, values.nbytes)
        for _ in range(length):
            x = add(context, x, y)
        self.graph = ggml(base, "ggml_new_graph_custom", p, p, size, ctypes.c_bool)(context, length + 8, False)
        ggml(base, "ggml_build_forward_expand", None, p, p)(self.graph, x)
        self.plan = ggml(cpu, "ggml_graph_plan", Plan, p, ctypes.c_int, p)(self.graph, threads, None)
        self.work = ctypes.create_string_buffer(self.plan.work_size + 1)
        self.plan.work = ctypes.addressof(self.work)
        self.compute = ggml(cpu, "ggml_graph_compute", ctypes.c_int, p, ctypes.POINTER(Plan))
        self.values = numpy.ctypeslib.as_array(ctypes.cast(data(x), ctypes.POINTER(ctypes.c_float)), (16,))

    def run(self):
        if self.compute(self.graph, ctypes.byref(self.plan)):
            raise SystemExit("ggml_graph_compute failed")


def make_chain(keys):
    length, ways = keys.number("length", 1000), {}
    for threads in {1, keys.number("threads", 1)}:
        ways[f"ggml-{threads}-threads" if threads > 1 else "ggml"] = Chain(Path(keys["inputs"]), length, threads)

    def result(chain):
        chain.run()
        return {"y": chain.values.copy()}

    return peer.Entry(
        {way: chain.run for way, chain in ways.items()},
        {way: lambda chain=chain: result(chain) for way, chain in ways.items()},
    )


def make(name, keys):
    if name == "add_chain" and keys.number("program"):
        return make_chain(keys)
    if name not in ("prompt", "generate", "load"):
        return None
    ids = [int(i) for i in numpy.load(Path(keys["inputs"]) / "ids.npy")]
    tokens = keys.number("tokens", 32)
    room = -(-(len(ids) + tokens) // 256) * 256

    def open_model():
        return Model(gguf_of(Path(keys["model"])), keys.number("threads", 1), room)

    if name == "load":
        return make_load(open_model, ids)
    model = open_model()

    def run():
        model.forget()
        start = time.perf_counter()
        logits = model.feed(ids)
        if name == "prompt":
            return time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(tokens - 1):
            logits = model.feed([int(logits.argmax())])
        return (time.perf_counter() - start) / (tokens - 1)

    def results():
        model.forget()
        model.feed(ids[:-1])
        return {"logits": model.feed(ids[-1:])[None]}

    return peer.Entry({"llama.cpp": run}, {"llama.cpp": results})


if __name__ == "__main__":
    peer.serve(f"llama-cpp-python-{importlib.metadata.version('llama-cpp-python')}", make)
