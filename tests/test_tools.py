"""Tests of tools/ and of the data and model files that they made. Standard library only:

    python3 -m unittest tests/test_tools.py
"""

import json
import random
import sys
import unittest
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import make_verses
import sword
import train_bpe

MODEL = ROOT / "models" / "taper-wick"


def read_pairs(split):
    lines = (ROOT / "data" / "verses" / f"{split}.jsonl").read_text(encoding="ascii").splitlines()
    return [json.loads(line) for line in lines]


class CleaningTest(unittest.TestCase):
    def test_footnote_between_words_leaves_a_space(self):
        self.assertEqual(sword.clean("<w>God</w><w>created</w> <w>light</w> ."), "God created light.")

    def test_footnote_after_punctuation_leaves_a_space(self):
        self.assertEqual(sword.clean("<w>east</w>,<w>they</w>"), "east, they")

    def test_lines_of_poetry_join_and_inline_marks_go(self):
        marked_up = '<l level="1"/>¶ he <transChange type="added">is</transChange>,<l/> <l/>my <divineName>LORD</divineName>'
        self.assertEqual(sword.clean(marked_up), "he is, my LORD")

    def test_quotes_without_partner_go_and_apostrophes_stay(self):
        self.assertEqual(sword.pair_quotes("He said, “God’s “word” is"), "He said, God’s “word” is")
        self.assertEqual(sword.pair_quotes("straight!’”"), "straight!")
        self.assertEqual(sword.pair_quotes("“‘Go,’ he said.”"), "“‘Go,’ he said.”")
        self.assertEqual(sword.pair_quotes("the kings’ way"), "the kings’ way")

    def test_ascii(self):
        self.assertEqual(sword.to_ascii("“Judæa” — café’s 你"), '"Judaea" -- cafe\'s ')


class VersesTest(unittest.TestCase):
    def test_sizes_and_form(self):
        for split, size in make_verses.SIZES.items():
            pairs = read_pairs(split)
            self.assertEqual(len(pairs), size)
            for pair in pairs:
                self.assertRegex(pair["prompt"], r"\AModern: .+\nKing James:\Z")
                self.assertRegex(pair["completion"], r"\A \S.*\S\Z")

    def test_splits_share_no_verse(self):
        seen = Counter(prompt for split in make_verses.SIZES for prompt in {p["prompt"] for p in read_pairs(split)})
        self.assertEqual([prompt for prompt, splits in seen.items() if splits > 1], [])

    def test_unsuitable_verses_are_left_out(self):
        modern = "You shall not covet your neighbor's house, nor his field."
        old = "Thou shalt not covet thy neighbour's house, nor his field."
        self.assertTrue(make_verses.suitable(modern, old))
        self.assertFalse(make_verses.suitable(modern, modern))  # nothing changed
        self.assertFalse(make_verses.suitable(modern, "And it came to pass, that when they had lifted up their eyes"))
        self.assertFalse(make_verses.suitable("You shall not.", "Thou shalt not."))  # too short


class BpeTest(unittest.TestCase):
    def test_split_loses_nothing(self):
        split = train_bpe.re.compile(train_bpe.PYTHON_SPLIT)
        chooser = random.Random(1)
        for _ in range(500):
            text = "".join(chooser.choice("ab_ '\n\r\t.,1S-tré") for _ in range(40))
            self.assertEqual("".join(split.findall(text)), text)

    def test_split_follows_the_pattern(self):
        split = train_bpe.re.compile(train_bpe.PYTHON_SPLIT)
        self.assertEqual(split.findall("I'll  go_on, 12 days!\n\n Yes"),
                         ["I", "'ll", " ", " go", "_on", ",", " ", "1", "2", " days", "!\n\n", " Yes"])

    def test_merges_equal_those_counted_afresh_each_time(self):
        chooser = random.Random(2)
        for _ in range(20):
            words = Counter("".join(chooser.choice("aab") for _ in range(chooser.randint(1, 9))) for _ in range(60))
            self.assertEqual(train_bpe.learn_merges(words, 256, 12), self.plain_merges(words, 256, 12))

    @staticmethod
    def plain_merges(word_counts, first_id, n_merges):
        words = [(list(word.encode()), count) for word, count in word_counts.items()]
        merges = []
        while len(merges) < n_merges:
            counts = Counter()
            for ids, count in words:
                for pair in zip(ids, ids[1:]):
                    counts[pair] += count
            if not counts:
                break
            best = min(counts, key=lambda pair: (-counts[pair], pair))
            words = [(train_bpe.merge_word(ids, best, first_id + len(merges)), count) for ids, count in words]
            merges.append(best)
        return merges

    def test_shipped_tokenizer_is_whole(self):
        tokenizer = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
        vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        self.assertEqual(sorted([*vocabulary.values(), *added.values()]), list(range(config["vocab_size"])))
        self.assertEqual(config["eos_token_id"], added["<|endoftext|>"])
        self.assertTrue(set(train_bpe.byte_letters().values()) <= set(vocabulary))
        for rank, merge in enumerate(merges):
            left, right = merge.split(" ")
            self.assertEqual(vocabulary[left + right], 256 + rank)
            self.assertLess(max(vocabulary[left], vocabulary[right]), 256 + rank)


if __name__ == "__main__":
    unittest.main()
