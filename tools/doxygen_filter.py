"""A header as doxygen reads it: the input filter of docs/Doxyfile.

Comments in the headers are plain C ones. The first becomes the file's, one that begins a line the next
declaration's, one behind a declaration that declaration's; headings ("---- leaves ----") and comments inside
macros stay plain.
"""

import re
import sys

COMMENT = re.compile(r"/\*(.*?)\*/", re.S)
SPECIAL = re.compile(r"([<>@\\#%])")
EXAMPLE = re.compile(r"(?:^ \*     .*\n)+", re.M)


def escaped(text):
    return SPECIAL.sub(r"\\\1", text)


def opening(text):
    """The file's comment: what is indented in it is verbatim."""
    parts, at = [], 0
    for match in EXAMPLE.finditer(text):
        parts += [escaped(text[at:match.start()]), " * @verbatim\n", match.group(), " * @endverbatim\n"]
        at = match.end()
    return "/** @file\n *" + "".join(parts) + escaped(text[at:]) + "*/"


def documented(match):
    text, before = match.group(1), match.string[: match.start()].rpartition("\n")[2]
    if match.start() == 0:
        return opening(text)
    if text.startswith(" ----") or before.lstrip().startswith("#") or match.string[match.end():].startswith(" \\"):
        return match.group()
    if not before.strip():
        return f"/**{escaped(text)}*/"
    return f"/**<{escaped(text)}*/"


sys.stdout.write(COMMENT.sub(documented, open(sys.argv[1], encoding="utf-8").read()))
