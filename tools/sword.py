"""Read Bible verses from the SWORD modules of Debian (sword-text-kjv, sword-text-web) through diatheke.

The trick: diatheke's plain output drops the space where a footnote stood between two words ("Godcreated").
Its internal output keeps the mark-up, so the words are still apart there and the tags can be taken off here.
"""

import os
import re
import subprocess
import unicodedata

KJV = "engKJV2006eb"
WEB = "engWEB2015eb"

OLD_TESTAMENT = """Genesis, Exodus, Leviticus, Numbers, Deuteronomy, Joshua, Judges, Ruth, I Samuel, II Samuel,
I Kings, II Kings, I Chronicles, II Chronicles, Ezra, Nehemiah, Esther, Job, Psalms, Proverbs, Ecclesiastes,
Song of Solomon, Isaiah, Jeremiah, Lamentations, Ezekiel, Daniel, Hosea, Joel, Amos, Obadiah, Jonah, Micah,
Nahum, Habakkuk, Zephaniah, Haggai, Zechariah, Malachi"""
APOCRYPHA = """Tobit, Judith, Esther (Greek), Wisdom, Sirach, Baruch, Prayer of Azariah, Susanna,
Bel and the Dragon, I Maccabees, II Maccabees, I Esdras, Prayer of Manasses, Additional Psalm, III Maccabees,
II Esdras, IV Maccabees"""
NEW_TESTAMENT = """Matthew, Mark, Luke, John, Acts, Romans, I Corinthians, II Corinthians, Galatians, Ephesians,
Philippians, Colossians, I Thessalonians, II Thessalonians, I Timothy, II Timothy, Titus, Philemon, Hebrews,
James, I Peter, II Peter, I John, II John, III John, Jude, Revelation of John"""


def names(text):
    return [" ".join(name.split()) for name in text.split(",")]


CANON = names(OLD_TESTAMENT) + names(NEW_TESTAMENT)
ALL_BOOKS = names(OLD_TESTAMENT) + names(APOCRYPHA) + names(NEW_TESTAMENT)

HEADING = re.compile(r"<title\b.*?</title>", re.S)
WORDS_MEET = re.compile(r"</w>(?=<w\b)")
INLINE_TAG = re.compile(r"</?(?:w|transChange|divineName|q|seg|name|note)\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
GLOSSARY = "The following words used in the World English Bible"  # stands after the last verse

ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "æ": "ae",
                       "Æ": "AE", "œ": "oe", "Œ": "OE", "¶": " ", "\u00a0": " ", "\u2009": " ", "\u200b": None,
                       "×": "x", "·": None, "°": " degrees", "½": "1/2", "¼": "1/4", "™": "(TM)"})


def to_ascii(text):
    """Typographic signs as their plain keys, accents taken off; anything else outside ASCII is dropped."""
    decomposed = unicodedata.normalize("NFKD", text.translate(ASCII))
    return decomposed.encode("ascii", "ignore").decode("ascii")


def pair_quotes(text):
    """Drop each quotation mark without a partner: a speech often runs over several verses."""
    opened, drop = [], set()
    for i, sign in enumerate(text):
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        if sign in "“‘":
            opened.append(i)
        elif sign == "”" or (sign == "’" and not after.isalpha()):
            wanted = "“" if sign == "”" else "‘"
            if opened and text[opened[-1]] == wanted:
                opened.pop()
            elif sign == "”" or not before.isalpha():  # else an apostrophe: "the kings’ ways"
                drop.add(i)
    drop.update(opened)
    return "".join(sign for i, sign in enumerate(text) if i not in drop)


def clean(marked_up):
    """The plain words of one verse, with curly quotation marks still in place."""
    text = WORDS_MEET.sub("</w> ", marked_up)
    text = TAG.sub(" ", INLINE_TAG.sub("", text)).replace("¶", " ")
    text = text.partition(GLOSSARY)[0]
    text = re.sub(r"(?<=[\w,.;:!?])(?=[“‘])|(?<=[,;:])(?=[A-Za-z])", " ", text)
    text = re.sub(r"\s+([,.;:!?”])", r"\1", " ".join(text.split()))
    return re.sub(r"([“‘])\s+", r"\1", text)


def read_module(module):
    """{book: {(chapter, verse): text}} of a whole module, in the order of the module."""
    run = subprocess.run(["diatheke", "-b", module, "-f", "internal", "-k", "Gen-Rev"], check=True,
                         stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, "LC_ALL": "C.UTF-8"})
    text = HEADING.sub(" ", run.stdout)
    book = "|".join(re.escape(name) for name in sorted(ALL_BOOKS, key=len, reverse=True))
    heads = list(re.finditer(rf"(?:^|(?<=[> \n]))({book}) (\d+):(\d+): ", text))
    if not heads:
        raise SystemExit(f"sword: module {module} has no verses; is its Debian package installed?")
    ends = [head.start() for head in heads[1:]] + [text.rindex(f"({module})")]
    books = {}
    for head, end in zip(heads, ends):
        verse = clean(text[head.end() : end])
        if verse:
            books.setdefault(head[1], {})[int(head[2]), int(head[3])] = verse
    return books
