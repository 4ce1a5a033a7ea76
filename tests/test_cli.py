"""The command, driven as a user drives it: exit codes, one-line errors, configuration files, output on pipes and
terminals, interruption. Standard library only; TAPER names the program:

    TAPER=build/taper python3 tests/test_cli.py
"""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAPER = os.environ.get("TAPER") or str(ROOT / "build" / "taper")
WICK = ROOT / "models" / "taper-wick"
GOLDEN = ROOT / "tests" / "golden" / "models"
VERSES = ROOT / "data" / "verses"
ROW = {"prompt": "Modern: a small light.\nKing James:", "completion": " A lamp of little oil."}

TRAIN_LINE = re.compile(
    r"^Iter \d+: Train loss \d+\.\d{3}, Learning Rate \d\.\d{3}e[-+]\d\d, Grad norm \d+\.\d{3}, It/sec \d+\.\d{3}, "
    r"Tokens/sec \d+\.\d, Trained Tokens \d+, Peak mem \d+\.\d{3} GB(, ETA \d+:\d\d:\d\d)?$"
)
VAL_LINE = re.compile(r"^Iter \d+: Val loss \d+\.\d{3}, Val took \d+\.\d{3}s$")


def taper(*args, stdin=None, code=None, **kwargs):
    """Runs the command; stdout and stderr are text. With `code`, the exit code must be that one."""
    result = subprocess.run(
        [TAPER, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=300, **kwargs
    )
    if code is not None and result.returncode != code:
        raise AssertionError(f"{args}: exit code {result.returncode}, expected {code}\n{result.stderr}")
    return result


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """A model of two thin layers with the vocabulary that ships, trained for one step; an adapter of it."""
        cls.work = Path(tempfile.mkdtemp(prefix="taper-cli-"))
        cls.addClassCleanup(shutil.rmtree, cls.work)
        # Fontconfig, which draws the plot's text, keeps its caches to the end of the process.
        os.environ.setdefault("LSAN_OPTIONS", f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0")
        start = cls.work / "start"
        start.mkdir()
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(WICK / name, start)
        config = json.loads((WICK / "config.json").read_text())
        config.update(hidden_size=32, intermediate_size=48, num_hidden_layers=2, initializer_range=0.2)
        config.update(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
        (start / "config.json").write_text(json.dumps(config))
        cls.data = cls.work / "data"
        cls.data.mkdir()
        for name, rows in (("train", 24), ("valid", 4)):
            (cls.data / f"{name}.jsonl").write_text((json.dumps(ROW) + "\n") * rows)
        cls.model, cls.adapter = cls.work / "model", cls.work / "adapter"
        taper("train", "--method", "full", "-m", start, "-d", cls.data, "-o", cls.model, "--iters", 1, code=0)
        cls.trained = taper(
            *("train", "-m", cls.model, "-d", cls.data, "-o", cls.adapter, "--iters", 60, "--lr", 0.005),
            *("--log-every", 20, "--save-every", 0),
            code=0,
        )

    def refused(self, args, code, *parts, **kwargs):
        """The command fails with this code and one line on stderr that has all the parts."""
        result = taper(*args, code=code, **kwargs)
        self.assertRegex(result.stderr, r"\Ataper: [^\n]+\n\Z")
        for part in parts:
            self.assertIn(str(part), result.stderr)
        return result

    def generate(self, *args, **kwargs):
        return taper("generate", "-m", self.model, "--max-tokens", 12, *args, code=0, **kwargs).stdout

    def train_args(self, out, *args):
        return ("train", "-m", self.model, "-d", self.data, "-o", self.work / out, *args)

    # ---- usage ----

    def test_help_and_version(self):
        self.assertRegex(taper("--version", code=0).stdout, r"\Ataper \d+\.\d+\.\d+\n\Z")
        listed = taper("help", code=0).stdout
        for name in ("train", "generate", "merge", "info", "devices"):
            self.assertIn(f"  {name} ", listed)
            text = taper("help", name, code=0).stdout
            self.assertEqual(text, taper(name, "--help", code=0).stdout)
            self.assertIn(f"Usage: taper {name}", text)
        self.assertIn("Optimizer steps", taper("help", "train").stdout)

    def test_usage_errors(self):
        cases = [
            (["trian"], 'unknown command "trian"; did you mean "train"?'),
            (["train", "--lerning-rate", "3"], "--lerning-rate; did you mean --learning-rate?"),
            (["train", "--bacth-size=3"], "did you mean --batch-size?"),
            (["train", "--xyzzy"], "unknown option --xyzzy"),
            (["train", "--lr"], "--lr needs a value"),
            (["train", "-m"], "-m: needs a value"),
            (["train", "-Z"], "-Z: unknown option"),
            (["train", "--lr", "fast"], '--lr: expected a number, got "fast"'),
            (["train", "--rank", "-3"], "--rank: expected a whole number"),
            (["train", "--method", "dora"], "--method: expected one of lora, full"),
            (["train", "--pack=maybe"], "--pack: expected true or false"),
            (["train", "--mem-limit", "4X"], "--mem-limit: expected a size"),
            (["train", "extra"], 'unexpected argument "extra"\n'),
            (["train", "--resume", "auto", "--rank", "8"], 'unexpected argument "auto"; did you mean --resume=auto?'),
            (["train", "--resume", "--rank", "8", "auto"], 'unexpected argument "auto"\n'),
            (["train"], "--model is required"),
            (["generate", "-m", "x", "-p", "a", "-f", "b"], "--prompt or --file, not both"),
            (["generate", "-m", self.model, "-p", "a", "--top-p", "2"], "top_p is 2"),
            (["generate", "-m", self.model, "-p", ""], "the prompt has no tokens"),
            (["generate", "-m", self.model, "-p", "a", "--device", "tpu"], '--device: expected auto, cpu or cuda:N, got "tpu"'),
            (["merge", "-m", self.model, "-a", self.adapter, "-o", self.model], "the model's own directory"),
            (list(self.train_args("no", "--targets", "q_prj")), "q_prj"),
            (list(self.train_args("no", "--batch-size", "0")), "batch_size"),
        ]
        for args, part in cases:
            with self.subTest(args=args):
                self.refused(args, 2, part)
        self.assertFalse((self.work / "no").exists())

    def test_names_of_other_tools(self):
        args = ("--learning-rate", "1e-3", "--steps-per-eval", 5, "--max-seq-length", 64, "--num-layers", 1)
        text = taper(*self.train_args("no", "--iters", 4, "--dry-run", *args), code=0).stdout
        self.assertIn("Steps: 4 ", text)
        self.assertEqual(
            self.generate("-p", "light", "--temp", 1, "--adapter-path", self.adapter),
            self.generate("-p", "light", "--temperature", 1, "--adapter", self.adapter),
        )

    # ---- configuration files ----

    def config(self, text):
        path = self.work / "config.yaml"
        path.write_text(text)
        return path

    def test_config_is_beaten_by_the_command_line(self):
        path = self.config(
            f"# a run\nmodel: {self.model}\ndata: {self.data}\nout: {self.work}/no\n"
            "batch_size: 2\nmax-seq: 64\niters: 7\ntargets: [q_proj, v_proj]\npack: false\nresume:\n"
        )
        both = taper("train", "-c", path, "--dry-run", code=0).stdout
        self.assertIn("Steps: 7 (12 an epoch)", both)
        line = taper("train", "-c", path, "--iters", 9, "--targets", "q_proj", "--dry-run", code=0).stdout
        self.assertIn("Steps: 9 (12 an epoch)", line)
        trained = [int(re.search(r"Trained parameters: (\d+)", text)[1]) for text in (both, line)]
        self.assertGreater(trained[0], trained[1])
        self.assertFalse((self.work / "no").exists())

    def test_config_errors(self):
        cases = [
            ("lr: 1\nbacth_size: 3\n", 2, ':2: unknown key "bacth_size"; did you mean "batch-size"?'),
            ("lr: fast\n", 2, ':1: lr: expected a number, got "fast"'),
            ("lr: {a: 1}\n", 2, ":1: lr: expected a value, got a mapping"),
            ("lr: [1, 2]\n", 2, ":1: lr: expected one value, got a list"),
            ("lr: 1\nlearning_rate: 2\n", 2, ":2: lr is set twice"),
            ("config: other.yaml\n", 2, ":1: config belongs on the command line"),
            ("lr: 1\nlr: 2\n", 3, ":2:1: duplicate key"),
            ("lr: [\n", 3, "config.yaml:"),
            ("- lr\n", 3, "expected a mapping"),
        ]
        for text, code, part in cases:
            with self.subTest(text=text):
                self.refused(["train", "-c", self.config(text)], code, part)
        self.refused(["train", "-c", self.config("")], 2, "--model is required")
        self.refused(["train", "-c", self.work / "none.yaml"], 3, "none.yaml: No such file")

    # ---- training ----

    def test_training_on_a_pipe(self):
        lines = self.trained.stdout.splitlines()
        self.assertEqual(self.trained.stderr, "")
        trains = [line for line in lines if "Train loss" in line]
        vals = [line for line in lines if "Val loss" in line]
        self.assertEqual(len(trains), 3)
        for line in trains:
            self.assertRegex(line, TRAIN_LINE)
        for line in vals:
            self.assertRegex(line, VAL_LINE)
        first, last = (float(re.search(r"Val loss ([\d.]+)", vals[i])[1]) for i in (0, -1))
        self.assertLess(last, first - 1)
        for name in ("adapter_model.safetensors", "adapter_config.json", "log.jsonl", "loss.svg", "loss.png"):
            self.assertTrue((self.adapter / name).is_file(), name)

    def test_training_on_a_terminal_keeps_to_its_width(self):
        try:
            pid, fd = pty.fork()
        except OSError as error:  # a bare chroot has none
            self.skipTest(f"no pseudo-terminal: {error}")
        if pid == 0:
            os.execv(TAPER, [TAPER, *map(str, self.train_args("terminal", "--iters", 12))])
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        shown = b""
        while True:
            try:
                piece = os.read(fd, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        os.close(fd)
        live = [line for line in re.split(r"[\r\n]+", shown.decode()) if "/12  loss" in line]
        self.assertTrue(live)
        for line in live:
            self.assertLess(len(line.replace("\x1b[K", "")), 50)
        self.assertNotIn(b"Train loss", shown)

    LONG = ("--iters", 100000, "--log-every", 1, "--val-batches", 1, "--save-every", 0)

    def start_long_run(self, out, *args):
        run = subprocess.Popen(
            [TAPER, *map(str, self.train_args(out, *self.LONG, *args))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(run.stdout.close)
        self.addCleanup(run.stderr.close)
        self.addCleanup(run.kill)
        for line in run.stdout:
            if "Train loss" in line:
                return run
        raise AssertionError(run.stderr.read())

    def test_interruption_saves_and_resumes(self):
        run = self.start_long_run("stopped")
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=120)
        self.assertEqual((run.returncode, err), (130, ""))
        self.assertIn("Saved", out)
        saved = list((self.work / "stopped" / "checkpoints").iterdir())
        self.assertEqual(len(saved), 1)
        run = self.start_long_run("stopped", "--resume")
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=120)
        self.assertEqual(run.returncode, 130)

    def test_a_configuration_is_one_document_of_plain_options(self):
        for text, part in (
            (b"rank: 8\n---\nbogus: 1\n", ":2: expected one document"),
            (b"rank: 8\n...\nbogus\n", ":2: expected one document"),
            ("rank: 8\nlr: abc\n".encode("utf-16"), "in UTF-8"),
            (b"rank: 8\0lr: abc\n", "in UTF-8"),
            (b"a: &a 8\nrank: *a\n", "unknown key"),
            (b"rank: &a 8\nalpha: *a\n", "an alias"),
            (b"- rank\n", "expected a mapping"),
        ):
            path = self.work / "odd.yaml"
            path.write_bytes(text)
            run = taper(*self.train_args("odd", "-c", path, "--dry-run"))
            self.assertIn(run.returncode, (2, 3), text)
            self.assertIn(part, run.stderr)
        run = taper(*self.train_args("odd", "-c", self.work, "--dry-run"))
        self.assertEqual(run.returncode, 3)
        self.assertIn("s a directory", run.stderr)

    def test_an_error_is_one_line_whatever_it_quotes(self):
        for args in (("generate", "-m", "no\nsuch\x1b[31m", "-p", "x"), ("no\nsuch\x1b[31m",)):
            run = taper(*args)
            self.assertIn(run.returncode, (2, 3))
            self.assertNotIn("\x1b", run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1, run.stderr)

    def test_underscores_are_explained(self):
        run = taper("train", "--batch_size", "3")
        self.assertEqual(run.returncode, 2)
        self.assertIn("unknown option --batch_size; did you mean --batch-size?", run.stderr)

    def test_a_second_signal_of_either_kind_ends_at_once(self):
        run = self.start_long_run("twice")
        run.send_signal(signal.SIGSTOP)  # so that it gets both before it does anything
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGCONT)
        time.sleep(0.002)
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=120)
        # Both may be delivered together, the later one first; 130: it had ended between the two.
        self.assertIn(run.returncode, (-signal.SIGTERM, -signal.SIGINT, 130))

    def test_a_closed_pipe_does_not_end_training(self):
        run = subprocess.Popen(
            [TAPER, *map(str, self.train_args("unread", "--iters", 6, "--log-every", 1))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        run.stdout.readline()
        run.stdout.close()
        self.assertEqual(run.stderr.read(), "")
        run.stderr.close()
        run.wait(timeout=120)
        self.assertTrue((self.work / "unread" / "adapter_model.safetensors").is_file())

    def test_bad_data(self):
        bad = self.work / "bad"
        bad.mkdir()
        lines = [json.dumps(ROW)] * 20
        lines[16] = '{"prompt": "x"'
        (bad / "train.jsonl").write_text("\n".join(lines))
        args = ("train", "-m", self.model, "-d", bad, "-o", self.work / "no")
        self.refused(args, 3, "train.jsonl:17")
        (bad / "train.jsonl").write_text("")
        self.refused(args, 3, "train.jsonl")
        self.refused(("train", "-m", self.model, "-d", bad / "none", "-o", self.work / "no"), 3, "none")
        self.assertFalse((self.work / "no").exists())

    def test_limits(self):
        self.refused(self.train_args("no", "--mem-limit", "100kB"), 4, "limit")
        wild = ("--method", "full", "--lr", 1e6, "--weight-decay", 1e6, "--clip", 0, "--iters", 30)
        named = r"step \d+: \w+( of [\w, ]+)? \(kernel \w+, plan step \d+ of \d+\): element \[.*; "
        stopped = self.refused(self.train_args("wild", *wild), 5)
        self.assertRegex(stopped.stderr, named + "not finite in 5 steps in a row; no checkpoint was saved\n")
        self.assertEqual(stopped.stdout.count("Skipped"), 5)
        stopped = self.refused(self.train_args("wilder", *wild, "--detect-nan", "--save-every", 1), 5)
        self.assertRegex(stopped.stderr, named + r"the last good checkpoint is .*/wilder/checkpoints/step-\d+\n")
        self.assertNotIn("Skipped", stopped.stdout)

    # ---- generation ----

    def test_the_prompt_comes_from_three_places(self):
        path = self.work / "prompt.txt"
        path.write_text("A small light\n")
        text = self.generate("-p", "A small light")
        self.assertTrue(text.endswith("\n") and len(text) > 2)
        self.assertEqual(text, self.generate("-f", path))
        self.assertEqual(text, self.generate(stdin="A small light\n"))
        self.assertEqual(text, self.generate(stdin="A small light\r\n"))
        self.assertEqual(text, self.generate("-c", self.config("prompt: A small light\ntemperature: 0\n")))

    def test_adapters_act(self):
        prompt = ROW["prompt"]
        base = self.generate("-p", prompt)
        adapted = self.generate("-p", prompt, "-a", self.adapter)
        self.assertEqual(adapted.strip(), ROW["completion"].strip())
        self.assertEqual(base, self.generate("-p", prompt, "-a", f"{self.adapter}:0"))
        halves = ("-a", f"{self.adapter}:0.5", "-a", f"{self.adapter}:0.5")
        self.assertEqual(adapted, self.generate("-p", prompt, *halves))
        merged = self.work / "merged"
        text = taper("merge", "-m", self.model, "-a", self.adapter, "-o", merged, code=0).stdout
        self.assertIn(f"Wrote {merged}", text)
        self.assertEqual(adapted, taper("generate", "-m", merged, "-p", prompt, "-n", 12, code=0).stdout)

    def test_stops_and_seeds(self):
        args = ("-p", ROW["prompt"], "-a", self.adapter)
        self.assertEqual(self.generate(*args, "--stop", "of").rstrip("\n"), " A lamp ")
        self.assertEqual(self.generate(*args, "--max-tokens", 1, "--stats").count("\n"), 1)
        for end, words in {
            "max-tokens": ("-n", 1), "a stop text": ("--stop", "of"), "a token that ends a text": ("-n", 99),
        }.items():  # fmt: skip
            done = taper("generate", "-m", self.model, *args, *words, "--stats", code=0)
            self.assertEqual(done.stderr.splitlines()[-1], f"Ended by {end}")
        draws = [self.generate("-p", "x", "-t", 1, "--seed", seed) for seed in (1, 1, 2)]
        self.assertEqual(draws[0], draws[1])
        self.assertNotEqual(draws[0], draws[2])

    def test_stdout_that_cannot_be_written(self):
        for args in (["help"], ["generate", "-m", self.model, "-p", "x"], ["info", self.model]):
            with self.subTest(args=args), open("/dev/full", "w") as full:
                result = subprocess.run(
                    [TAPER, *map(str, args)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
                )
                self.assertEqual(result.returncode, 3)
                self.assertEqual(result.stderr, "taper: standard output: No space left on device\n")
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(
            [TAPER, "generate", "-m", str(self.model), "-p", "x"], stdout=writer, stderr=subprocess.PIPE, timeout=120
        )
        os.close(writer)
        self.assertEqual((result.returncode, result.stderr), (1, b""))

    def test_bad_models_and_adapters(self):
        self.refused(["generate", "-m", self.work / "none", "-p", "x"], 3, "none")
        self.refused(["generate", "-m", self.model, "-p", "x", "-a", self.work / "none"], 3, "none")
        self.refused(["merge", "-m", GOLDEN / "llama", "-a", self.adapter, "-o", self.work / "no"], 3, "adapter")
        broken = self.work / "broken"
        shutil.copytree(self.model, broken, ignore=shutil.ignore_patterns("checkpoints", "best"))
        weights = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        self.refused(["info", broken], 3, "model.safetensors")
        self.assertFalse((self.work / "no").exists())

    # ---- info ----

    def test_info(self):
        data = json.loads(taper("info", GOLDEN / "qwen3", "--json", code=0).stdout)
        self.assertEqual(data["architecture"], "Qwen3ForCausalLM")
        self.assertEqual(data["layers"], 2)
        self.assertEqual(len(data["targets"]), 15)
        shape = {target["path"]: target["shape"] for target in data["targets"]}
        self.assertEqual(shape["model.layers.1.mlp.down_proj"], [22, 33])
        self.assertEqual(shape["lm_head"], [107, 22])
        text = taper("info", "-m", GOLDEN / "qwen3", code=0).stdout
        self.assertRegex(text, rf"parameters +{data['parameters']}\n")
        self.assertRegex(text, r"down_proj +\[22, 33\] +2 +1452 +model\.layers\.0\.mlp\.down_proj\n")

    def test_devices(self):
        self.assertRegex(taper("devices", code=0).stdout, r"\Acpu +\S")


if __name__ == "__main__":
    unittest.main()
