#!/usr/bin/env python3
"""Make data/verses: the same verse in modern English (prompt) and in the King James English (completion).

Whole books are held out, so a model that is tested on them has seen none of their verses: not here, and not
in the pre-training text, which leaves the same books out (make_corpus.py).

    make_verses.py [DIRECTORY]        default: data/verses beside this script's folder
"""

import json
import random
import re
import sys
from pathlib import Path

import sword

VALID_BOOKS = ["Jonah", "Malachi", "Galatians", "I Peter"]
TEST_BOOKS = ["Ruth", "Ecclesiastes", "James"]
SIZES = {"train": 5000, "valid": 200, "test": 200}
SEED = 1611

MIN_CHARS, MAX_CHARS = 40, 190
LENGTH_RATIO = 1.5  # of the longer version to the shorter
MIN_SHARED = 0.35  # part of the King James words that the modern verse has too
MIN_CHANGED = 3  # words of the King James version that the modern verse has not


def words(text):
    return re.findall(r"[a-z]+", text.lower())


def suitable(modern, old):
    """Moderate length, whole sentences that begin with a capital, and plainly two versions of one verse."""
    if not all(MIN_CHARS <= len(text) <= MAX_CHARS for text in (modern, old)):
        return False
    if max(len(modern), len(old)) > LENGTH_RATIO * min(len(modern), len(old)):
        return False
    if re.search(r"[^A-Za-z ,.;:?!'\"()-]", modern + old) or not re.match(r"\W*[A-Z]", modern):
        return False
    known = set(words(modern))
    same = sum(word in known for word in words(old))
    return same >= MIN_SHARED * len(words(old)) and len(words(old)) - same >= MIN_CHANGED


def as_pair(modern, old):
    """The labels say which English is which; the completion begins with the space that follows the colon, so
    the tokens of prompt and completion are those of the whole text."""
    return {"prompt": f"Modern: {modern}\nKing James:", "completion": f" {old}"}


def aligned(modern_books, old_books, book):
    for place, old in old_books[book].items():
        modern = modern_books[book].get(place)
        if modern is None:
            continue
        modern, old = (sword.to_ascii(sword.pair_quotes(text)) for text in (modern, old))
        if suitable(modern, old):
            yield as_pair(modern, old)


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "data" / "verses"
    out.mkdir(parents=True, exist_ok=True)
    modern_books, old_books = sword.read_module(sword.WEB), sword.read_module(sword.KJV)
    held_out = {"valid": VALID_BOOKS, "test": TEST_BOOKS}
    held_out["train"] = [book for book in sword.CANON if book not in VALID_BOOKS + TEST_BOOKS]
    chooser = random.Random(SEED)
    for split, size in SIZES.items():
        pairs = [pair for book in held_out[split] for pair in aligned(modern_books, old_books, book)]
        chosen = chooser.sample(pairs, min(size, len(pairs)))
        with open(out / f"{split}.jsonl", "w", encoding="ascii") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in chosen)
        print(f"{split}: {len(chosen)} of {len(pairs)} suitable verses, {len(held_out[split])} books")


if __name__ == "__main__":
    main()
