#!/usr/bin/env python3
"""Make the pre-training text from Debian packages: DIRECTORY/train.jsonl and valid.jsonl, lines {"text": ...}.

    make_corpus.py DIRECTORY

Sources: the World English Bible (without the books that data/verses holds out), Jane Austen's novels, the
glosses and examples of WordNet, the Jargon File and the Devil's Dictionary. The King James Bible is never read
here. Each source is a function that yields documents; all come out as ASCII, one line a paragraph.

A share of the documents says things twice. So little text teaches a small model to copy from its context late
or never, and rewriting a verse is mostly copying.
"""

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import make_verses
import sword

WORDNET = Path("/usr/share/wordnet")
DICTIONARIES = Path("/usr/share/dictd")
SEED = 1811
VALID_EVERY = 100  # one document in so many is held out
LISTED_PAIRS = 8000
REPEATED_PAIRS = 14000
SHORTENED_PAIRS = 10000
ECHO_GROUP = 3  # pairs a document
SYNSETS_PER_DOCUMENT = 8


def unwrap(paragraph):
    return " ".join(paragraph.split())


def bible():
    """One document a chapter."""
    held_out = make_verses.VALID_BOOKS + make_verses.TEST_BOOKS
    for book, verses in sword.read_module(sword.WEB).items():
        if book in held_out:
            continue
        chapters = {}
        for (chapter, _), text in verses.items():
            chapters.setdefault(chapter, []).append(text)
        yield from (" ".join(chapter) for chapter in chapters.values())


def austen():
    """One document a chapter, the headings left out."""
    script = "writeLines(enc2utf8(janeaustenr::austen_books()$text), useBytes = TRUE)"
    run = subprocess.run(["Rscript", "--vanilla", "-e", script], check=True, stdout=subprocess.PIPE,
                         encoding="utf-8", env={**os.environ, "LC_ALL": "C.UTF-8"})
    for chapter in re.split(r"(?mi)^ *(?:CHAPTER|VOLUME) [\dIVXL]+\.?.*$", run.stdout)[1:]:
        paragraphs = (unwrap(part) for part in re.split(r"\n\s*\n", chapter.replace("_", "")))
        yield "\n".join(part for part in paragraphs if not re.fullmatch(r"[^a-z]*|THE END|(?i:finis)", part))


def synsets(path):
    """The lines "words: gloss; "example"" of a WordNet data file. Only those with an example: the rest is in
    great part taxonomy, geography and biography, and would outweigh the connected prose."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):  # the licence
            continue
        record, _, gloss = line.partition(" | ")
        fields = record.split()
        if '"' not in gloss:
            continue
        lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        names = ", ".join(re.sub(r"\(\w+\)$", "", lemma).replace("_", " ") for lemma in lemmas)
        yield f"{names}: {unwrap(gloss.replace('`', chr(39)))}."


def wordnet():
    """Neighbours in the files, which are often near in meaning, share a document."""
    for part in ("noun", "verb", "adj", "adv"):
        lines = list(synsets(WORDNET / f"data.{part}"))
        for i in range(0, len(lines), SYNSETS_PER_DOCUMENT):
            yield "\n".join(lines[i : i + SYNSETS_PER_DOCUMENT])


def read_dictionary(name):
    with gzip.open(DICTIONARIES / f"{name}.dict.dz", "rt", encoding="utf-8") as file:
        return file.read()


def jargon():
    """One document an entry: the headword, then its paragraphs without pronunciation and link braces."""
    text = read_dictionary("jargon")
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda link: unwrap(link[1]), text[text.index("\n/dev/null\n") :])
    for entry in re.split(r"\n\n(?=\S)", text):
        head, _, body = entry.strip("\n").partition("\n")
        _, _, body = body.partition("\n\n")  # what stands between is the pronunciation
        paragraphs = [unwrap(part) for part in re.split(r"\n\s*\n", body)]
        if any(paragraphs):
            yield "\n".join([f"{head}: {paragraphs[0]}"] + paragraphs[1:])


def devil():
    """One document an entry; indented lines are verse and keep their breaks."""
    text = read_dictionary("devil")
    text = text[text.index("ABASEMENT, n.") :]
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, )", text):
        parts = re.split(r"\n\s*\n", entry)
        yield "\n".join("\n".join(map(str.strip, part.split("\n"))) if part.startswith("  ") else unwrap(part)
                        for part in parts)


def words_of(text):
    return re.findall(r"[A-Za-z]+", text)


def thinned(sentence, chooser):
    """The sentence without about one word in six."""
    return " ".join(word for word in sentence.split() if chooser.random() > 1 / 6)


def echoes(documents, chooser):
    """Documents of a few pairs: a line, then the same line again, of one of three kinds. Lists of random words are
    where nothing but the context helps; sentences are what will be asked; a sentence that comes again with words
    missing teaches to find the place again. Half of the documents put a label before each line."""
    sentences, vocabulary = [], set()
    for document in documents:
        sentences += re.findall(r"(?<=[.!?] )[A-Z][^.!?\n]{30,160}[.!?](?= )", document)
        vocabulary.update(words_of(document))
    vocabulary = sorted(vocabulary)

    def listed():
        line = " ".join(chooser.choices(vocabulary, k=chooser.randint(5, 20)))
        return line, line

    def repeated():
        line = chooser.choice(sentences)
        return line, line

    def shortened():
        line = chooser.choice(sentences)
        return line, thinned(line, chooser)

    for kind, count in ((listed, LISTED_PAIRS), (repeated, REPEATED_PAIRS), (shortened, SHORTENED_PAIRS)):
        for _ in range(0, count, ECHO_GROUP):
            labels = ("", "")
            if chooser.random() < 0.5:
                labels = [f"{word.capitalize()}: " for word in chooser.sample(vocabulary, 2)]
            pairs = (kind() for _ in range(ECHO_GROUP))
            yield "\n".join(label + line for pair in pairs for label, line in zip(labels, pair))


def write(path, documents):
    with open(path, "w", encoding="ascii") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    print(f"{path}: {len(documents)} documents, {sum(map(len, documents))} bytes of text")


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: make_corpus.py DIRECTORY")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    chooser = random.Random(SEED)
    train, valid = [], []
    for source in (bible, austen, wordnet, jargon, devil):
        documents = [text for text in map(sword.to_ascii, source()) if len(text) > 40]
        print(f"{source.__name__}: {len(documents)} documents, {sum(map(len, documents))} bytes")
        chooser.shuffle(documents)
        share = max(1, len(documents) // VALID_EVERY)
        valid += documents[:share]
        train += documents[share:]
    train += echoes(train, chooser)
    chooser.shuffle(train)
    write(out / "train.jsonl", train)
    write(out / "valid.jsonl", valid)


if __name__ == "__main__":
    main()
