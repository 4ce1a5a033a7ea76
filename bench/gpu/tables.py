"""What a run says, as Markdown: the goals with peer, ours and limit; then every operation beside its limit."""

import rows

# (work, row of gpu_ops, µs to reach; 0: no goal)
OPERATION_GOALS = [
    ("LoRA forward [128, 512] r 8, in a captured plan", "lora-128x512-r8", 3.0),
    ("softmax [16384, 4096]", "softmax-16384x4096", 70.0),
    ("rms_norm [16384, 4096]", "rms_norm-16384x4096", 66.0),
    ("softmax [128, 512], in a captured plan", "softmax-128x512", 2.0),
    ("rms_norm [128, 512], in a captured plan", "rms_norm-128x512", 2.0),
]
CALL_GOAL = ("LoRA forward [128, 512] r 8, a call and its wait", "lora-128x512-r8", 12.0)
# (work, row with the adapter and rows of the base products, most that it may cost above them)
OVERHEAD_GOALS = [
    (
        f"x·W + LoRA [{m}, 4096 → 4096] r 16{what}",
        " ".join([f"linear_lora{kind}-{size}-r16", *(f"linear{base}-{size}" for base in bases)]), most,
    )
    for what, kind, bases in (
        ("", "", [""]), (", gradient by x", "_dx", ["_dx"]), (", forward and all gradients", "_grad", ["", "_dx"]),
    )
    for m, size, most in ((8192, "8192x4096x4096", 0.03), (2048, "2048x4096x4096", 0.05))
]  # fmt: skip
# training: (tokens a second, GB)
TRAIN_GOALS = {
    "0.5b 8x512": (180e3, 5), "0.5b 8x2048": (200e3, 14), "1.5b 8x1024": (75e3, 17), "7b 4x1024": (17e3, 30),
}  # fmt: skip
GENERATE_GOALS = {"0.5b": 1500, "7b": 240}
PROMPT_SHARE = 0.6
HOST_SECONDS = 100e-6
COLD_SECONDS = 2.0

NOTHING = "–"


def cell(figures, text):
    """What `text` makes of the figures, or why there are none."""
    if not figures:
        return NOTHING
    for word in ("error", "skipped"):
        if word in figures:
            return f"{word}: {str(figures[word]).splitlines()[0][:60]}".replace("|", "/")
    return text(figures)


def measured(figures, key):
    return figures[key] if figures and isinstance(figures.get(key), (int, float)) else None


def verdict(value, reach, most=False):
    """`most`: the value is to stay below."""
    if value is None:
        return NOTHING
    return "yes" if (value <= reach if most else value >= reach) else "no"


def row(*cells):
    return "| " + " | ".join(str(c) for c in cells) + " |"


# ---- limits ----


class Limits:
    """The best of this run: what copies move, and the faster product of the two sides."""

    def __init__(self, found):
        micro = found.get("micro", {})
        copy = micro.get("copy", {}).get("ours", {})
        self.bytes = copy["bytes"] / copy["us"] * 1e6 if "us" in copy else None
        rates = [2 * 8192**3 / us * 1e6 for us in operation_times(micro.get("matmul-8192x8192x8192", {})) if us]
        self.flops = max(rates, default=None)

    def us(self, figures):
        """The least time of an operation."""
        bound = [figures[what] / rate * 1e6 for what, rate in (("bytes", self.bytes), ("flops", self.flops)) if rate]
        return max(bound, default=None)

    def text(self):
        if not (self.bytes and self.flops):
            return "The limits were not measured."
        moves, products = f"{self.bytes / 1e12:.2f} TB/s", f"{self.flops / 1e12:.0f} TFLOP/s"
        return f"Limits of this run: copying {moves}, bf16 products {products}."


# ---- operations ----

PEER_WAYS = ("captured_us", "compiled_us", "eager_us")


def best_peer(figures):
    """(µs, way) of the peer's best, eager calls included: a small captured call is none of them."""
    found = [(measured(figures, way), way.removesuffix("_us")) for way in PEER_WAYS]
    return min(((us, way) for us, way in found if us), default=(None, ""))


def operation_times(entry):
    return measured(entry.get("ours"), "us"), best_peer(entry.get("peer"))[0]


def us_text(us):
    return NOTHING if us is None else f"{us:.2f} µs" if us < 10 else f"{us:.1f} µs" if us < 100 else f"{us:.0f} µs"


def peer_operation(entry):
    def text(figures):
        us, way = best_peer(figures)
        eager = f"eager {us_text(measured(figures, 'eager_us'))}"
        return eager if way == "eager" else f"{eager}, {way} {us_text(us)}"

    return cell(entry.get("peer"), text)


def operation_rows(micro, limits):
    for work, name, reach in OPERATION_GOALS:
        if name in micro:
            entry = micro[name]
            ours, text = entry["ours"], cell(entry["ours"], lambda f: us_text(f["us"]))
            limit = us_text(limits.us(ours)) if "us" in ours else NOTHING
            met = verdict(measured(ours, "us"), reach, most=True)
            yield row(work, peer_operation(entry), text, limit, f"≤ {reach:g} µs", met)
    work, name, reach = CALL_GOAL
    if name in micro:
        ours, peer = micro[name]["ours"], micro[name]["peer"]
        met = verdict(measured(ours, "call_us"), reach, most=True)
        texts = [cell(side, lambda f: us_text(f["call_us"])) for side in (peer, ours)]
        yield row(work, *texts, NOTHING, f"≤ {reach:g} µs", met)


def overhead_text(figures):
    low, middle, high = (100 * (figures[key] - 1) for key in ("ratio_low", "ratio", "ratio_high"))
    base = us_text(figures["base_us"])
    return f"{us_text(figures['us'])}, base {base}: {middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def overhead_rows(found):
    for work, names, most in OVERHEAD_GOALS:
        if names in found:
            entry = found[names]
            met = verdict(measured(entry["ours"], "ratio"), 1 + most, most=True)
            texts = [cell(entry[side], overhead_text) for side in ("peer", "ours")]
            yield row(work, *texts, "the base", f"≤ +{100 * most:.0f} %", met)


# ---- models ----


def rate_text(rate):
    return f"{rate / 1e3:.1f} k" if rate >= 1e4 else f"{rate:.0f}"


def spaced(key):
    return key.replace("x", " × ")


def train_text(figures):
    return f"{rate_text(figures['tokens_per_second'])} tokens/s, {figures['peak_bytes'] / 1e9:.1f} GB"


def peer_training(peer):
    return "; ".join(f"{way} {cell(figures, train_text)}" for way, figures in peer["ways"].items())


def training_rows(found, limits):
    for key, entry in found.get("train", {}).items():
        ours, reach, met = entry["ours"], NOTHING, NOTHING
        limit = limits.flops and limits.flops / rows.training_flops(entry["model"], entry["length"])
        if key in TRAIN_GOALS:
            tokens, memory = TRAIN_GOALS[key]
            reach = f"≥ {tokens / 1e3:.0f} k, ≤ {memory} GB"
            if "tokens_per_second" in ours:
                fits = verdict(ours["peak_bytes"] / 1e9, memory, most=True)
                met = f"{verdict(ours['tokens_per_second'], tokens)}, {fits}"
        limit_text = f"{rate_text(limit)} tokens/s" if limit else NOTHING
        theirs, text = peer_training(entry["peer"]), cell(ours, train_text)
        yield row(f"train {spaced(key)}", theirs, text, limit_text, reach, met)


def host_rows(found):
    def text(figures):
        return us_text(1e6 * figures["host_seconds"])

    for key, entry in found.get("train", {}).items():
        theirs = "; ".join(f"{way} {cell(figures, text)}" for way, figures in entry["peer"]["ways"].items())
        met = verdict(measured(entry["ours"], "host_seconds"), HOST_SECONDS, most=True)
        yield row(f"host time a step, {spaced(key)}", theirs, cell(entry["ours"], text), NOTHING, "≤ 100 µs", met)


def start_text(figures):
    beyond = figures["seconds"] - figures["load_seconds"]
    return f"{figures['seconds']:.2f} s, {beyond:.2f} s beyond loading"


def start_rows(found):
    for key, entry in found.get("cold", {}).items():
        ours = entry["ours"]
        beyond = ours["seconds"] - ours["load_seconds"] if "seconds" in ours else None
        texts = [cell(entry[side], start_text) for side in ("peer", "ours")]
        met = verdict(beyond, COLD_SECONDS, most=True)
        yield row(f"cold start to first step, {key}", *texts, NOTHING, "≤ 2 s beyond loading", met)


def speed_text(figures):
    return rate_text(figures["tokens_per_second"])


def peer_generation(peer):
    ways = peer.get("ways", {})
    return "; ".join(f"{way} {cell(figures, speed_text)}" for way, figures in ways.items()) or cell(peer, str)


def generation_rows(found, limits):
    for key, entry in found.get("generate", {}).items():
        ours, reach = entry["ours"], GENERATE_GOALS.get(key)
        limit = limits.bytes and limits.bytes / rows.weight_bytes(key)
        met = verdict(measured(ours, "tokens_per_second"), reach) if reach else NOTHING
        texts = [peer_generation(entry["peer"]), cell(ours, speed_text), rate_text(limit) if limit else NOTHING]
        yield row(f"generate, one sequence, {key}, tokens/s", *texts, f"≥ {reach}" if reach else NOTHING, met)


def prompt_rows(found, limits):
    for key, entry in found.get("prompt", {}).items():
        length = rows.PROMPT_LENGTH
        least = limits.flops and rows.prompt_flops(key, length) / limits.flops

        def text(figures):
            share = f", {100 * least / figures['seconds']:.0f} %" if least else ""
            return f"{1e3 * figures['seconds']:.1f} ms{share}"

        ours = measured(entry["ours"], "seconds")
        met = verdict(least / ours, PROMPT_SHARE) if least and ours else NOTHING
        limit = f"{1e3 * least:.1f} ms" if least else NOTHING
        texts = [cell(entry[side], text) for side in ("peer", "ours")]
        yield row(f"prompt of {length:,} tokens to the first, {key}", *texts, limit, "≥ 60 % of products", met)


# ---- the document ----


def goals(found, limits):
    micro = found.get("micro", {})
    yield row("work", "peer", "taper", "limit", "to reach (H200)", "met")
    yield "|---|---|---|---|---|---|"
    yield from operation_rows(micro, limits)
    yield from overhead_rows(found.get("overhead", {}))
    yield from training_rows(found, limits)
    yield from host_rows(found)
    yield from start_rows(found)
    yield from generation_rows(found, limits)
    yield from prompt_rows(found, limits)


def all_operations(micro, limits):
    yield row("operation", "PyTorch", "taper, in a plan", "a call", "limit", "share", "launches and kernels")
    yield "|---|---|---|---|---|---|---|"
    for name, entry in micro.items():
        ours = entry["ours"]
        if "us" not in ours:
            yield row(name, peer_operation(entry), cell(ours, str), *[NOTHING] * 4)
            continue
        limit = limits.us(ours)
        share = f"{100 * limit / ours['us']:.0f} %" if limit else NOTHING
        times = [us_text(us) for us in (ours["us"], ours["call_us"], limit)]
        yield row(name, peer_operation(entry), *times, share, f"{ours['steps']:g}: {ours['kernels']}")


def growth_table(found):
    for part, points in found.items():
        if not part.startswith("growth-"):
            continue
        yield f"\n### Growth with {part.removeprefix('growth-')}\n"
        yield row("model, batch × length", "PEFT, eager", "taper")
        yield "|---|---|---|"
        for key, entry in points.items():
            yield row(spaced(key), cell(entry["peer"], train_text), cell(entry["ours"], train_text))


def document(found):
    limits, micro = Limits(found), found.get("micro", {})
    peers = found.get("peers", {})
    card = peers.get("card", "card not stated")
    versions = ", ".join(f"{name} {version}" for name, version in peers.get("versions", {}).items()) or "no peers"
    lines = [f"{card}; {versions}; {found.get('date', '')}. {limits.text()}", "", *goals(found, limits)]
    if micro:
        lines += ["", "### Operations", "", *all_operations(micro, limits)]
    lines += growth_table(found)
    return "\n".join(lines) + "\n"
