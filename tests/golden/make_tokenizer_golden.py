#!/usr/bin/env python3
"""Makes tests/golden/tokenizer: small tokenizers, and what Hugging Face `tokenizers` makes of a corpus with them.

    python3 tests/golden/make_tokenizer_golden.py BUILD_DIR

BUILD_DIR gets a virtual environment with the pinned version. The output is the same on every run: the text to
train on is below, and random choices have a fixed seed. Each folder holds tokenizer.json and cases.json:

    encode  [{"text", "ids", "decoded"?, "special_ids"?}]  decoded is absent when it equals the text; either is
                                                           "text_hex", "decoded_hex" when it holds NUL
    decode  [{"ids", "text", "skipped"}]                            without and with skip_special_tokens
"""

import json
import os
import random
import subprocess
import sys
import unicodedata

VERSION = "0.23.3"
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")

TRAINING_TEXT = """
The lamp was lit before the rain began, and nobody in the house could say who had lit it.
She'd have gone further if they'd let her; we're told it's what he'll do, and I'm sure you've seen that.
In 1875 there were 12 boats, 340 nets and 7 boys; in 2024 there's one boat, and 99 visitors a day.
def area(width, height):\n    # in square metres\n    return width * height\n\n\tif area(3, 4) >= 12: print("big")
{"name": "taper", "rank": 16, "layers": [1, 2, 3], "scale": 2.0e-4}
Der Fluss führt über die Wiesen; schöne Äpfel, große Straßen, süße Träume.
L'été dernier, où étiez-vous ? Ça m'a plu, garçon, déjà vu, à bientôt.
El niño comió piñas mañana; ¿dónde está la señora? ¡Qué bien!
Вчера мы долго шли вдоль реки и говорили о книгах и о море.
Η θάλασσα ήταν ήσυχη και ο ουρανός γεμάτος άστρα.
昨天我們沿著河走了很久,談論書和海。今天天氣很好。
昨日は川に沿って長く歩き、本と海について話しました。
어제 우리는 강을 따라 오래 걸으며 책과 바다에 대해 이야기했다.
مشينا أمس طويلا على ضفة النهر وتحدثنا عن الكتب والبحر.
אתמול הלכנו זמן רב לאורך הנהר ודיברנו על ספרים ועל הים.
कल हम नदी के किनारे देर तक चले और किताबों की बातें कीं।
เมื่อวานเราเดินเลียบแม่น้ำเป็นเวลานาน
🙂 👍 🚀 a smile, a thumb, a rocket; ❤️ and 👩‍🚀 too.
""".strip().split("\n")

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

HAND_WRITTEN = [
    "", " ", "  ", "a", "\n", "\r\n", "Hello, world!", " leading", "trailing ", "  two  blanks  ",
    "I'm, you're, she'd, they'll, we've, it's, don't", "I'M YOU'RE SHE'D THEY'LL WE'VE IT'S DON'T", "'s 't 'x '' '",
    "it\u2019s a curly one", "'\u017f long s, \u212a kelvin sign", "rock'n'roll 'tis O'Neill's",
    "0 12 345 6789 1234567890 3.14 1,000,000 1e-4 ½ ² Ⅷ ٣٤٥ १२३", "x1y22z333",
    "tabs\tand\t\tmore\t\t\tend", "line\nline\n\nline\n\n\n\nend", "crlf\r\nline\r\n\r\nend\r", "  \n  \n x", "a \n b \n\n  c",
    "a\u00a0b\u2003c\u2009d\u202fe\u3000f\u1680g\u2028h\u2029i\u0085j\u200bk\u180el\ufeffm", "\u3000\u3000 \u2003 x",
    "\x0b\x0c\x1c\x1d\x1e\x1f", "\x01\x02\x7f\x80\x9f\xad", "\ufffd\ufffe\uffff\U0010ffff\ue000",
    "cafe\u0301 café", "e\u0301\u0323 e\u0323\u0301 ệ", "\u212b \u00c5 A\u030a", "\u1100\u1161\u11a8 각 가\u11a8",
    "\u0344 \u0958 \u2126 \u1fbe \ufb1d \u2adc", "a\u0315\u0300\u05ae\u0300b", "ﬁ ﬂ ① Ａ ㎞ ｶﾞ", "İstanbul ISTANBUL ΣΑΣ ẞ Ǆ",
    "👩‍👩‍👧‍👦 family 👩🏽‍🚀 astronaut 🏳️‍🌈 flag 🇩🇪🇫🇷 ❤️ 1️⃣ 🙂🙂🙂", "昨天我們走了很久。今天天氣很好!", "日本語とEnglishの混在text",
    "مرحبا بالعالم، كيف الحال؟", "שלום עולם! \u202bmixed ltr\u202c", "नमस्ते दुनिया क्षत्रिय", "สวัสดีชาวโลก", "가나다 각각",
    "a" * 300, " " * 120, "\n" * 70, "ab" * 90, "=" * 80, "1" * 50, "é" * 60, "🙂" * 30, " a" * 60, "_" * 33 + "x",
    "for (int i = 0; i < n; i++) {\n\tsum += x[i] * y[i];\n}\n", "<html>\n  <b>bold</b>&nbsp;\n</html>", "$%^&*()_+-={}[]|\\:\";<>?,./~`",
    "unreachable unreachable, Unreachable", "<|end|>", "<|end|><|end|>", "x<|end|>y", " <|end|> ", "x <|end|>\n\ny <|begin|>",
    "<|begin|>user\nhi<|end|>\n<|begin|>assistant\n", "<|en", "<|end|", "<<|end|>>", "<|end|>|>", "<|END|>", "<|end|> 's",
    "a <mask> b", "a  \n <mask>  b", "<mask><mask> <mask>", "<mask>x<mask>", "\u3000<mask>", "a <right>  b", "<right> \n<mask> x <right> ",
    "word", "a word here", "password wordy", "word's", "(word)", "word_x word9 \u0301word é\u200dword", "wordword word",
    "<tool>f()</tool>", "<tool><tool>", "<too", "re\u0301sume\u0301 résumé", "xrésuméx", "re\u0301sume\u0301<|end|>e\u0301",
    "reserved <|r_1|><|r_12|><|r_123|> <|r_999|>", "aab", "aabc", "aaab aabc", "<0x41> <0x0A>",
]
# For files in SentencePiece's style: blanks and marks at beginnings, special tokens in the middle, characters that are bytes.
FOR_PIECES = [
    "<s>", "<s>Hello", "<s> Hello", "Hello<s>", "Hello <s> there", "Hello</s>there</s> you", "<s><s>a", " <s>a", "</s> <s>", "\n<s>\n",
    "[INST] Hello [/INST] there</s>[INST]more[/INST]", "[INST][/INST]", "<old>", "a<old>b", " <old> b", "a <old>", "\u2581<old>x", "<old><old>",
    "\u2581", "\u2581\u2581", "\u2581a", " \u2581a", "a\u2581b", "\u2581 a", "a \u2581 b \u2581\u2581c", " a", "   a", "a   ", " a  b   c    d     e ",
    "lamp<tool> lamp", "<tool> lamp", " <tool>lamp", "lamp <mask> lamp", "<right>  lamp", "résumé lamp", "a résumé", "word lamp", "lamp\n lamp\n\n  lamp",
    "\U0001f702", "a\U0001f702\U0001f703b", "\u1000\u1001 \u1002", "\ue000\u20ac\ufffd", "日本\u1000語", "<0x0A><0xFF>", "<0x41", "e", "ee eee", "tea te e", "abab ab",
]
WITH_NUL = ["\0", "a\0b", "\0\0\0 x\0"]

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "0123456789", "     ", " \t\n\r", ".,;:!?'\"-()[]{}<>|/\\_@#$%^&*+=~`",
    "'", "äöüßéèêàçñøåœÆŁřžğış", "абвгдежзийклмнопрстуфхцчшщ", "αβγδεζηθικλμνξοπρσςτυφχψω", "的一是不了人我在有他这中大来上国", "あいうえおかきくけこアイウエオ",
    "가나다라마바사아자차카타파하", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", "אבגדהוזחטיכלמנסעפצקרשת", "कखगघचछजझटठडढतथदधनिीुूेैोौं्", "กขคงจฉชซญดตถทนบปผฝพฟมยรลวศสหอะาิีุูเแโใไ่้",
    "🙂😂👍🚀🎉👩👨👧🏽🏿\u200d\ufe0f🇩🇪🇫🇷", "\u0300\u0301\u0302\u0308\u030a\u0323\u0327\u0328\u0315\u05ae", "\u00a0\u1680\u2002\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u0085",
    "\x01\x02\x07\x08\x0b\x0c\x1b\x1f\x7f\u00ad\u200b\u200c\u200d\u2060\ufeff\u180e", "²³½¼①Ⅷ٠١٢٣०१२３４５", "\u1100\u1102\u1161\u1165\u11a8\u11ab", "ﬁﬂﬀＡＢａｂ㎞㍿ｶﾞ", "eeeaaann",
]
PIECES = ["<|end|>", "<|begin|>", "<mask>", "<right>", "<tool>", "word", "résumé", "re\u0301sume\u0301", "'s", "'ll", "'RE", "  ", "\n\n", "\r\n",
          " the", " and", "unreachable", "aab", "aabc", "<|r_1|>"]
RANGES = [(0x20, 0x7e), (0xa0, 0x24f), (0x370, 0x3ff), (0x400, 0x4ff), (0x590, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f), (0x1e00, 0x1fff), (0x2000, 0x22ff),
          (0x3000, 0x30ff), (0x4e00, 0x9fa5), (0xac00, 0xd7a3), (0x1f300, 0x1f64f), (0x20000, 0x2a6d0), (0x1d400, 0x1d7ff)]


def random_text(rng):
    """A few runs, each from one alphabet, of any character of a range, or a piece that means something."""
    text = ""
    for _ in range(rng.randint(1, 7)):
        kind = rng.random()
        if kind < 0.2:
            text += rng.choice(PIECES)
        elif kind < 0.3:
            low, high = rng.choice(RANGES)
            text += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))
        else:
            alphabet = rng.choice(ALPHABETS)
            text += "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 8)))
    return "".join(c for c in text if unicodedata.category(c) != "Cn" or c in "\ufffe\uffff")


def enter_environment(build):
    """Runs this script again with the pinned library."""
    environment = os.path.join(build, "tokenizer-golden-" + VERSION)
    python = os.path.join(environment, "bin", "python")
    if not os.path.exists(python):
        subprocess.check_call([sys.executable, "-m", "venv", environment])
        subprocess.check_call([python, "-m", "pip", "install", "-q", "tokenizers==" + VERSION])
    os.execv(python, [python, os.path.abspath(__file__), build, "inside"])


def special(content, **flags):
    from tokenizers import AddedToken
    return AddedToken(content, special=True, normalized=False, **flags)


def plain(content, normalized=False, **flags):
    from tokenizers import AddedToken
    return AddedToken(content, special=False, normalized=normalized, **flags)


def train(pre_tokenizer, normalizer=None, size=600, bytes_only=True, **model):
    """A BPE tokenizer over the text above; with bytes_only its alphabet is all bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE(**model))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_only else []
    specials = [model["unk_token"]] if "unk_token" in model else []
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False,
                                  special_tokens=specials)
    tokenizer.train_from_iterator(TRAINING_TEXT + ["aabc aab word words résumé"] * 3, trainer)
    if bytes_only:
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def edited(tokenizer, edit):
    """The tokenizer after a change to its JSON."""
    from tokenizers import Tokenizer
    data = json.loads(tokenizer.to_str())
    edit(data)
    return Tokenizer.from_str(json.dumps(data)), data


def add_unreachable(data):
    """Tokens that no merges make: ignore_merges finds them."""
    vocab = data["model"]["vocab"]
    for token in ["Ġunreachable", "unreachable", "9876"]:
        vocab.setdefault(token, len(vocab))


def merges_as_strings(data):
    data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in data["model"]["merges"]]


def add_common_tokens(tokenizer):
    tokenizer.add_special_tokens([special("<|end|>"), special("<|begin|>"), special("<mask>", lstrip=True),
                                  special("<right>", rstrip=True)])
    tokenizer.add_tokens([plain("<tool>"), plain("word", single_word=True), plain("résumé", normalized=True)])


def make_tokenizers():
    from tokenizers import Regex, normalizers, pre_tokenizers, processors
    byte_level = pre_tokenizers.ByteLevel
    made = {}

    def keep(name, tokenizer, data=None):
        made[name] = (tokenizer, data or json.loads(tokenizer.to_str()))

    split = pre_tokenizers.Split
    qwen = train(pre_tokenizers.Sequence([split(Regex(QWEN2), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]),
                 normalizers.NFC(), 800)
    add_common_tokens(qwen)
    keep("qwen2", qwen)

    llama = train(pre_tokenizers.Sequence([split(Regex(LLAMA3), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]),
                  size=700, ignore_merges=True)
    llama, _ = edited(llama, add_unreachable)
    add_common_tokens(llama)
    llama.add_special_tokens([special("<|r_%d|>" % i) for i in range(130)])
    begin = llama.token_to_id("<|begin|>")
    llama.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)])])
    keep("llama3", llama)

    gpt2 = train(byte_level(add_prefix_space=False), size=600)
    add_common_tokens(gpt2)
    gpt2.post_processor = processors.ByteLevel(trim_offsets=False)
    gpt2, data = edited(gpt2, merges_as_strings)
    keep("gpt2", gpt2, data)

    prefix = train(byte_level(add_prefix_space=True), size=500)
    add_common_tokens(prefix)
    prefix.post_processor = processors.RobertaProcessing(("<|end|>", prefix.token_to_id("<|end|>")), ("<|begin|>", prefix.token_to_id("<|begin|>")))
    keep("gpt2-prefix", prefix)

    smol = train(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=True)]),
                 normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s{2,}"), " "), normalizers.Replace(".", "!")]), 450)
    add_common_tokens(smol)
    keep("digits-nfkc", smol)

    for behavior, invert in [("removed", False), ("merged_with_previous", False), ("merged_with_next", True), ("contiguous", False)]:
        t = train(pre_tokenizers.Sequence([split(Regex(r"\s|\p{P}|\w\h"), behavior, invert), split("e", behavior),
                                           byte_level(add_prefix_space=False, use_regex=False)]),
                  normalizers.NFD(), 330)
        add_common_tokens(t)
        keep("split-" + behavior.replace("_", "-"), t)

    # Characters instead of bytes, with and without bytes to fall back on; no decoder.
    chars = train(split(" ", "merged_with_next"), normalizers.Prepend("_"), 500, bytes_only=False, unk_token="<unk>", fuse_unk=True)
    add_common_tokens(chars)
    keep("characters-fuse", chars)
    chars = train(pre_tokenizers.Digits(individual_digits=False), normalizers.NFKD(), 450, bytes_only=False, unk_token="<unk>")
    add_common_tokens(chars)
    keep("characters-unk", chars)

    def with_fallback(data):
        model = data["model"]
        model["byte_fallback"] = True
        for byte in range(0xf0):
            model["vocab"].setdefault("<0x%02X>" % byte, len(model["vocab"]))
    fallback, _ = edited(train(None, None, 400, bytes_only=False, unk_token="<unk>"), with_fallback)
    add_common_tokens(fallback)
    keep("characters-fallback", fallback)
    for name, tokenizer, data in make_pieces():
        keep(name, tokenizer, data)
    return made


BYTES = ["<0x%02X>" % byte for byte in range(256)]
MARK = "\u2581"


def train_pieces(words, missing=()):
    """A BPE tokenizer of characters as SentencePiece makes them: ids begin with <unk>, <s>, </s> and the bytes but the missing ones. Without
    `words` merges go over blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=words)
    first = ["<unk>", "<s>", "</s>"] + [b for b in BYTES if b not in missing]
    trainer = trainers.BpeTrainer(vocab_size=650, limit_alphabet=150, show_progress=False, special_tokens=first)
    tokenizer.train_from_iterator(TRAINING_TEXT + ["a  b   c     d", "aabc aab word words résumé"] * 3, trainer)

    def bytes_are_no_added_tokens(data):
        data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in BYTES]
        data["pre_tokenizer"] = None
    return edited(tokenizer, bytes_are_no_added_tokens)[0]


def begin_with(tokenizer, token):
    from tokenizers import processors
    tokenizer.post_processor = processors.TemplateProcessing(single=token + " $A", pair=token + " $A " + token + ":1 $B:1",
                                                             special_tokens=[(token, tokenizer.token_to_id(token))])


def make_pieces():
    """Files as models have them that came from SentencePiece: Llama 1 and 2, TinyLlama, Mistral; and rarer forms of theirs."""
    from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
    blanks = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    usual = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]

    legacy = train_pieces(words=True)
    legacy.normalizer = blanks
    legacy.decoder = decoders.Sequence(usual)
    add_common_tokens(legacy)
    # As Llama 1 has its special tokens. This version of the library does not skip such a one, as it knows it by another spelling; taper does.
    legacy.add_special_tokens([AddedToken("<old>", special=True, normalized=True)])
    begin_with(legacy, "<s>")
    yield "pieces-legacy", *edited(legacy, merges_as_strings)

    first = train_pieces(words=False)
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    first.decoder = decoders.Sequence(usual)
    add_common_tokens(first)
    first.add_special_tokens([special("[INST]"), special("[/INST]")])
    begin_with(first, "<s>")
    yield "pieces-first", first, None

    def older(data):
        data["model"].update(byte_fallback=False, ignore_merges=True)
        for key in "pre_tokenizer", "decoder":
            data[key] = {"type": "Metaspace", "replacement": MARK, "add_prefix_space": True}
    always, data = edited(train_pieces(words=True), older)
    add_common_tokens(always)
    data["added_tokens"] = json.loads(always.to_str())["added_tokens"]
    yield "pieces-always", always, data

    # Unknown bytes, texts that the steps cut on both sides, and a prefix for the first piece of several.
    odd = train_pieces(words=True, missing=BYTES[0xe3:0xe6])
    odd.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("e", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")])
    odd.decoder = decoders.Sequence([decoders.Strip("e", 1, 0), decoders.Replace("ab", "<0x41>"), decoders.ByteFallback(),
                                     decoders.Metaspace(prepend_scheme="never"), decoders.Fuse(), decoders.Replace("t", "sz"),
                                     decoders.Strip(" ", 2, 3)])
    add_common_tokens(odd)
    yield "pieces-odd", odd, None


def put(case, key, text):
    """NUL is refused by many readers of JSON: such a text is written in hexadecimal."""
    if "\0" in text:
        case[key + "_hex"] = text.encode().hex()
    else:
        case[key] = text


def decode(tokenizer, ids, skip):
    """The text, or None where the library panics: its Strip does, on a token that is cut from both sides and too short for it."""
    try:
        return tokenizer.decode(ids, skip_special_tokens=skip)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def make_cases(tokenizer, texts, rng):
    encode, decoded_ids = [], []
    for i, text in enumerate(texts):
        case = {}
        put(case, "text", text)
        case["ids"] = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = decode(tokenizer, case["ids"], False)
        if decoded is None:
            continue
        if decoded != text:
            put(case, "decoded", decoded)
        if i % 10 == 0:
            case["special_ids"] = tokenizer.encode(text, add_special_tokens=True).ids
        encode.append(case)
    limit = tokenizer.get_vocab_size()
    nul = {i for i in range(limit) if "\0" in (decode(tokenizer, [i], False) or "")}
    for _ in range(60):
        ids = [i for i in (rng.randrange(limit + 3) for _ in range(rng.randint(0, 20))) if i not in nul]
        if rng.random() < 0.5:
            ids = [i % 256 if i % 256 not in nul else i for i in ids]
        text, skipped = decode(tokenizer, ids, False), decode(tokenizer, ids, True)
        if text is not None and skipped is not None:
            decoded_ids.append({"ids": ids, "text": text, "skipped": skipped})
    return {"encode": encode, "decode": decoded_ids}


def write_lines(path, data):
    """JSON with one case a line."""
    lines = [json.dumps(k) + ": [\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in v) + "\n]" for k, v in data.items()]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    if len(sys.argv) == 2:
        enter_environment(sys.argv[1])
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rng = random.Random(20240229)
    corpus = [random_text(rng) for _ in range(500)]
    for name, (tokenizer, data) in make_tokenizers().items():
        main_kind = not name.startswith(("split", "characters", "pieces"))
        texts = HAND_WRITTEN + WITH_NUL + (corpus if main_kind else corpus[:150])
        if name.startswith("pieces"):
            texts = FOR_PIECES + texts[:-50]
        folder = os.path.join(OUT, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8", newline="\n") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
            file.write("\n")
        write_lines(os.path.join(folder, "cases.json"), make_cases(tokenizer, texts, rng))


if __name__ == "__main__":
    main()
