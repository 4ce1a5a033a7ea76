"""Tests of what the documentation says: each C fragment compiles, the README's program runs, each command of
docs/seed-coverage.md succeeds, docs/command-line.md has the command's options. What was built is in TAPER_BUILD.

    TAPER_BUILD=build python3 tests/test_docs.py
"""

import os
import re
import shlex
import subprocess
import tempfile
import unittest
from pathlib import Path

from test_cli import TRAIN_LINE, VAL_LINE

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("TAPER_BUILD", ROOT / "build"))
CC = os.environ.get("CC", "cc")
SANITIZE = os.environ.get("TAPER_SANITIZE", "")
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused", f"-I{ROOT / 'include'}", f"-I{ROOT / 'src'}"]

# What stands around a fragment: includes and the names that it takes as given.
PUBLIC = """\
#include "taper/taper.h"
#include <stdio.h>
#include <stdlib.h>
static tp_context *ctx;
static tp_device *device;
static tp_graph *g;
static tp_status status;
"""
LAZY = PUBLIC + """\
static tp_tensor *input, *weight, *bias, *target, *out, *ids;
static tp_lazy *x, *y, *w, *v, *loss;
static tp_lora_layer *layer, *lora1, *lora2;
static tp_model *model;
static tp_tokenizer *tokenizer;
static tp_forward forward;
"""
EAGER = PUBLIC + """\
static tp_tensor *x, *w, *a, *b;
static tp_lora_layer *layer;
"""
INTERNAL = """\
#include "autograd/vjp.h"
#include "backend/backend.h"
#include "core/alloc.h"
#include "models/config.h"
#include "ops/check.h"
#include <math.h>
#define TPI_SOFTPLUS TPI_RELU
"""
PRELUDES = {"eager.h": EAGER, "lora.h": LAZY.replace("*x, *y", "*y").replace("*input,", "*x, *input,"),
            "adding-an-op.md": INTERNAL, "adding-a-model.md": INTERNAL}

OPENING = re.compile(r"\A/\*(.*?)\*/", re.S)
MARKDOWN = re.compile(r"^```c\n(.*?)^```", re.S | re.M)
FUNCTION = re.compile(r"^(?:static )?[\w ]+[ *]\w+\([^;]*\) \{$", re.M)
CONTINUATION = "...\n"


class Fragment:
    """C text of a file and the line at which it begins there."""

    def __init__(self, path, line, text):
        self.path, self.line, self.text = path, line, text

    def is_program(self):
        return "int main(" in self.text

    def unit(self, number):
        """The fragment as a function; what defines functions itself, up to "...", stays outside."""
        outside, inside = "", self.text
        if FUNCTION.search(inside):
            outside, _, inside = inside.partition(CONTINUATION)
        inside = inside.replace(CONTINUATION, "\n")
        first = self.line + outside.count("\n") + (1 if inside and outside else 0)
        where = self.path.relative_to(ROOT).as_posix()
        return (f'#line {self.line} "{where}"\n{outside}\nint fragment_{number}(void);\n'
                f'int fragment_{number}(void) {{ {{\n#line {first} "{where}"\n{inside}\n}}\nreturn 0; }}\n')


def markdown_fragments(path):
    text = path.read_text(encoding="utf-8")
    for match in MARKDOWN.finditer(text):
        yield Fragment(path, text.count("\n", 0, match.start(1)) + 1, match.group(1))


def header_fragment(path):
    """The example in the comment that opens a header: its lines indented by four."""
    lines = OPENING.match(path.read_text(encoding="utf-8")).group(1).split("\n")
    code = [line[7:] if line.startswith(" *     ") else "" for line in lines]
    # Indented text that is no code, a listing of files for instance, is a block no line of which ends a statement.
    blocks, kept = re.split(r"(\n{2,})", "\n".join(code)), ""
    for block in blocks:
        kept += block if re.search(r";$", block, re.M) or not block.strip() else "\n" * block.count("\n")
    return Fragment(path, 1, kept + "\n")


def compile_unit(text, *flags):
    done = subprocess.run([CC, *FLAGS, *flags, "-xc", "-"], input=text, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stderr


def documents():
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class FragmentTest(unittest.TestCase):
    def check(self, path, fragments):
        units = [fragment.unit(i) for i, fragment in enumerate(fragments) if not fragment.is_program()]
        status, errors = compile_unit(PRELUDES.get(path.name, LAZY) + "".join(units), "-fsyntax-only")
        self.assertEqual(status, 0, f"\n{errors}")

    def test_opening_examples_of_headers(self):
        for path in sorted((ROOT / "include" / "taper").glob("*.h")):
            with self.subTest(header=path.name):
                fragment = header_fragment(path)
                self.assertIn(";", fragment.text, "no example")
                self.check(path, [fragment])

    def test_fragments_of_documents(self):
        for path in documents():
            with self.subTest(document=path.name):
                self.check(path, list(markdown_fragments(path)))

    def test_migration_shows_every_case(self):
        self.assertGreaterEqual(len(list(markdown_fragments(ROOT / "docs" / "migration-v1-to-v2.md"))), 8)

    def test_a_wrong_fragment_is_seen(self):
        wrong = Fragment(ROOT / "README.md", 1, "tp_lazy_no_such_operation(x);\n")
        self.assertNotEqual(compile_unit(LAZY + wrong.unit(0), "-fsyntax-only")[0], 0)


class ProgramTest(unittest.TestCase):
    def test_program_of_the_readme(self):
        programs = [f.text for f in markdown_fragments(ROOT / "README.md") if f.is_program()]
        self.assertEqual(len(programs), 1)
        flags = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            source = Path(folder) / "program.c"
            source.write_text(programs[0], encoding="utf-8")
            subprocess.run([CC, *FLAGS, *flags, source, "-o", program, f"-L{BUILD}", f"-Wl,-rpath,{BUILD}", "-ltaper"],
                           check=True)
            done = subprocess.run([program], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        shown = re.search(r"It prints `([^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8")).group(1)
        self.assertEqual(done.stdout.strip(), shown)


class DeprecationTest(unittest.TestCase):
    """Option B: TAPER_DEPRECATE_EAGER warns and names the lazy call; without it nothing is said."""

    CALL = '#include "taper/lora.h"\ntp_status f(tp_tensor *a, tp_tensor **y);\n' \
           "tp_status f(tp_tensor *a, tp_tensor **y) { return tp_tensor_matmul(a, a, y); }\n"

    def test_warning_names_the_lazy_call(self):
        status, errors = compile_unit(self.CALL, "-fsyntax-only", "-DTAPER_DEPRECATE_EAGER")
        self.assertNotEqual(status, 0)
        self.assertIn("use tp_lazy_matmul", errors)

    def test_default_is_silent(self):
        self.assertEqual(compile_unit(self.CALL, "-fsyntax-only"), (0, ""))


class SeedCoverageTest(unittest.TestCase):
    """Rows of docs/seed-coverage.md: | what | where | test | command |."""

    def rows(self):
        text = (ROOT / "docs" / "seed-coverage.md").read_text(encoding="utf-8")
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 4 and cells[3].startswith("`"):
                yield cells

    def test_places_exist(self):
        rows = list(self.rows())
        self.assertGreater(len(rows), 30)
        for what, where, test, _ in rows:
            for name in re.findall(r"`([\w./-]+)`", where + test):
                self.assertTrue((ROOT / name).exists(), f"{what}: {name} is not there")

    def test_named_symbols_are_declared(self):
        headers = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "include" / "taper").glob("*.h"))
        for what, *_ in self.rows():
            for name in re.findall(r"`(tp_\w+)`", what):
                self.assertRegex(headers, rf"\b{name}\b", f"{name} is in no public header")

    def test_commands_succeed(self):
        for command in dict.fromkeys(cells[3].strip("`") for cells in self.rows()):
            with self.subTest(command=command):
                words = [word.replace("build/", f"{BUILD}/", 1) if word.startswith("build/") else word
                         for word in command.split()]
                words = [str(BUILD) if word == "build" else word for word in words]
                done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
                output = done.stdout + done.stderr
                self.assertEqual(done.returncode, 0, f"{command}\n{output[-2000:]}")
                if "--filter" in command:
                    self.assertRegex(output, r"Passing: .{0,20}[1-9]", f"{command}: the filter matches no test")


class CommandLineTest(unittest.TestCase):
    """docs/command-line.md against `taper help` and src/cli/cli.h. Its tables have rows | option | default | meaning |,
    those of several commands name them in a fourth column; a default that the help shows stands in backticks."""

    OPTION = re.compile(r"^ {2}((?:-\w, |    )--\S+) +(.*)$", re.M)
    DEFAULT = re.compile(r" \[([^]]*)\]$")

    @classmethod
    def setUpClass(cls):
        cls.page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
        cls.commands = re.findall(r"^  ([a-z]\w*) {2,}\S", cls.help(), re.M)
        cls.documented = {command: {} for command in cls.commands}
        for section in re.split(r"^## ", cls.page, flags=re.M):
            for cells in cls.rows(section):
                if not cells[0].startswith("`-"):
                    continue
                own = re.match(r"taper (\w+)\n", section)
                for command in cells[3].split(", ") if len(cells) == 4 else [own[1]]:
                    cls.documented[command][cells[0].strip("`")] = cells[1]

    @staticmethod
    def help(*command):
        environment = {**os.environ, "ARGP_HELP_FMT": "rmargin=500"}  # a line an option
        return subprocess.run([BUILD / "taper", "help", *command], env=environment, check=True, capture_output=True,
                              text=True).stdout

    @staticmethod
    def rows(text):
        for line in text.splitlines():
            if line.startswith("| "):
                yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]

    def options(self, command):
        """Those that the help prints, with their defaults or None. The list of all commands, which `taper help help`
        prints, has none."""
        found = {}
        for option, meaning in self.OPTION.findall(self.help(command)):
            default = self.DEFAULT.search(meaning)
            found[option.strip()] = default and default[1]
        return found

    def test_commands(self):
        self.assertGreaterEqual(len(self.commands), 6)
        listed = [cells[0].strip("`") for cells in self.rows(self.page.partition("\n## ")[0])]
        self.assertEqual(listed, ["command", *self.commands])

    def test_options_and_defaults(self):
        total = 0
        for command in self.commands:
            options = self.options(command)
            self.assertEqual(set(self.documented[command]), set(options), command)
            for option, default in options.items():
                with self.subTest(command=command, option=option):
                    said = self.documented[command][option]
                    self.assertEqual(said, f"`{default}`") if default else self.assertNotIn("`", said)
            total += len(options)
        self.assertGreater(total, 60)

    def test_exit_codes(self):
        header = (ROOT / "src" / "cli" / "cli.h").read_text(encoding="utf-8")
        table = re.findall(r'X\(\w+, (\d+), "([^"]*)"\)', header)
        self.assertGreaterEqual(len(table), 7)
        self.assertEqual([tuple(cells) for cells in self.rows(self.page) if cells[0].isdigit()], table)

    def test_examples_use_what_there_is(self):
        lines = re.findall(r"^(?:.*\| )?taper (.*)$", re.search(r"```sh\n(.*?)```", self.page, re.S)[1], re.M)
        self.assertGreaterEqual(len(lines), 6)
        for line in lines:
            command, *words = shlex.split(line, comments=True)
            known = {name.split("=")[0].split("[")[0] for option in self.options(command) for name in option.split(", ")}
            for word in words:
                if word.startswith("-"):
                    self.assertIn(word, known, line)

    def test_progress_lines(self):
        for pattern in (TRAIN_LINE, VAL_LINE):
            self.assertTrue([line for line in self.page.splitlines() if pattern.match(line)], pattern.pattern)


if __name__ == "__main__":
    unittest.main()
