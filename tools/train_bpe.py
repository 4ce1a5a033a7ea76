#!/usr/bin/env python3
"""Train a byte-level BPE vocabulary and write it as a Hugging Face tokenizer.json.

    train_bpe.py TRAIN.jsonl TOKENIZER.json [--vocab-size 4096]

Text is cut into words by the pattern of Qwen2; a word is a sequence of bytes; the pair of neighbours that is
most frequent over all words becomes a token, again and again. The trick: words are counted once, and each pair
knows the words that contain it, so a merge touches those words only. The most frequent pair comes from a heap
whose stale entries are corrected when they reach the top. Equal counts go to the lower pair of ids, so the
result depends on nothing but the text.
"""

import argparse
import heapq
import json
import re
from collections import Counter

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# What tokenizer.json says, and the same in the classes that Python's re knows: \p{L} is [^\W\d_], and \p{N} is
# \d for the text here, which is ASCII.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PYTHON_SPLIT = SPLIT.replace(r"[^\r\n\p{L}\p{N}]", r"(?:[^\r\n\w]|_)").replace(
    r"[^\s\p{L}\p{N}]", r"(?:[^\s\w]|_)").replace(r"\p{L}", r"[^\W\d_]").replace(r"\p{N}", r"\d")


def byte_letters():
    """The printable character that stands for each byte in tokenizer.json: itself where printable, else the
    next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update((byte, chr(0x100 + i)) for i, byte in enumerate(others))
    return letters


def count_words(path):
    split = re.compile(PYTHON_SPLIT)
    counts = Counter()
    with open(path, encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            if not text.isascii():
                raise SystemExit(f"train_bpe: {path}: the text is not ASCII: {text[:60]!r}")
            counts.update(split.findall(text))
    return counts


def merge_word(ids, pair, new_id):
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def learn_merges(word_counts, first_id, n_merges):
    """The list of merged pairs; the i-th makes the token first_id + i."""
    words = [(list(word.encode()), count) for word, count in sorted(word_counts.items())]
    pair_counts, where = Counter(), {}
    for w, (ids, count) in enumerate(words):
        for pair in zip(ids, ids[1:]):
            pair_counts[pair] += count
            where.setdefault(pair, set()).add(w)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < n_merges:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        new_id = first_id + len(merges)
        merges.append(pair)
        grown = set()
        for w in where.pop(pair):
            ids, count = words[w]
            merged = merge_word(ids, pair, new_id)
            for old in zip(ids, ids[1:]):
                pair_counts[old] -= count
            for new in zip(merged, merged[1:]):
                pair_counts[new] += count
                if new_id in new:
                    where.setdefault(new, set()).add(w)
                    grown.add(new)
            words[w] = (merged, count)
        for new in grown:
            heapq.heappush(heap, (-pair_counts[new], new))
    return merges


def tokenizer_json(merges):
    letters = byte_letters()
    # Ids of bytes follow their letters, as is the custom of byte-level vocabularies; learn_merges uses the bytes.
    tokens = [letters[byte] for byte in range(256)]
    pairs = []
    for left, right in merges:
        pairs.append(f"{tokens[left]} {tokens[right]}")
        tokens.append(tokens[left] + tokens[right])
    vocabulary = {token: i for i, token in enumerate(sorted(tokens[:256]) + tokens[256:])}
    added = [{"id": len(tokens) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, token in enumerate(SPECIAL_TOKENS)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": pairs},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text")
    parser.add_argument("tokenizer")
    parser.add_argument("--vocab-size", type=int, default=4096, help="with bytes and special tokens")
    options = parser.parse_args()
    n_merges = options.vocab_size - 256 - len(SPECIAL_TOKENS)
    if n_merges < 0:
        parser.error(f"--vocab-size must be at least {256 + len(SPECIAL_TOKENS)}")
    counts = count_words(options.text)
    merges = learn_merges(counts, 256, n_merges)
    if len(merges) < n_merges:
        raise SystemExit(f"train_bpe: {options.text}: room for {n_merges} merges, the text gives {len(merges)}")
    with open(options.tokenizer, "w", encoding="utf-8") as file:
        json.dump(tokenizer_json(merges), file, ensure_ascii=False, indent=1)
        file.write("\n")
    print(f"{options.tokenizer}: {options.vocab_size} tokens from {len(counts)} distinct words")


if __name__ == "__main__":
    main()
