"""bench/gpu/run.py on the CPU, without peers, on small sizes, and what its tables say. No time is judged. Standard
library only; TAPER_BUILD names the build directory.

    TAPER_BUILD=build python3 tests/test_gpu_bench.py
"""

import json
import subprocess
import unittest

from bench_programs import BUILD, folder_for, run, run_well

import rows
import tables

GPU_OPS = BUILD / "bench" / "gpu_ops"


class SmallRunTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.out = folder_for(cls)
        run_well("gpu/run.py", "--small", "--bin", BUILD / "bench", "--out", cls.out)
        cls.found = json.loads((cls.out / "gpu.json").read_text())

    def test_every_part_was_measured(self):
        self.assertEqual(list(self.found["micro"]), rows.SMALL_OPERATIONS)
        self.assertEqual(list(self.found["overhead"]), rows.SMALL_OVERHEADS)
        for part in ("train", "cold", "generate", "prompt", "growth-length", "growth-rank"):
            self.assertTrue(self.found[part], part)
        for part, entries in self.found.items():
            for key, entry in entries.items() if part != "date" else ():
                self.assertNotIn("error", entry["ours"], f"{part} {key}")

    def test_the_losses_of_training_are_those_of_an_untrained_model(self):
        for loss in self.found["train"]["tiny 2x64"]["ours"]["losses"]:
            self.assertAlmostEqual(loss, 5.545, delta=0.5)  # log 256, the vocabulary

    def test_quartiles_are_in_order(self):
        for entry in self.found["overhead"].values():
            ratios = [entry["ours"][key] for key in ("ratio_low", "ratio", "ratio_high")]
            self.assertEqual(ratios, sorted(ratios))
            self.assertGreater(ratios[0], 0)

    def test_the_pictures_are_what_they_are_called(self):
        self.assertIn("<svg", (self.out / "growth.svg").read_text()[:200])
        self.assertEqual((self.out / "growth.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")


class DeviceTest(unittest.TestCase):
    def test_a_device_that_is_not_there_ends_the_run_in_one_line(self):
        out = folder_for(type(self)) / "out"
        words = ["gpu/run.py", "--device", "cuda:99", "--bin", BUILD / "bench", "--out", out]
        done = run(*words)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^run.py: gpu_ops: TP_E.*cuda.*\n$")
        self.assertEqual(done.stdout, "")
        self.assertFalse(out.exists())


class NamesTest(unittest.TestCase):
    def answers(self, *names):
        done = subprocess.run(
            [str(GPU_OPS), "device=cpu", "-"], input="\n".join(names), capture_output=True, text=True, check=False
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    def test_what_is_no_row_is_said_and_fails_the_run(self):
        status, answers = self.answers("nothing-8x8", "linear-24x64x64 nothing", "linear-24x64x64 ")
        self.assertEqual([a["error"] for a in answers], ["no such kind", "no such kind", "no base"])
        self.assertEqual(status, 1)

    def test_the_goals_ask_for_rows_that_there_are(self):
        listed = subprocess.run([str(GPU_OPS), "--list"], capture_output=True, text=True, check=True).stdout.split()
        asked = [name for _, name, _ in (*tables.OPERATION_GOALS, tables.CALL_GOAL)]
        asked += [name for _, names, _ in tables.OVERHEAD_GOALS for name in names.split()]
        self.assertEqual([name for name in asked if name not in listed], [])


class TablesTest(unittest.TestCase):
    def overhead(self, ratio):
        figures = {"us": 100 * ratio, "base_us": 100.0, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio}
        names = tables.OVERHEAD_GOALS[0][1]
        (line,) = tables.overhead_rows({names: {"ours": figures, "peer": {"error": "none"}}})
        return [cell.strip() for cell in line.strip("|").split("|")]

    def test_an_overhead_is_met_up_to_its_goal(self):
        self.assertEqual(self.overhead(1.02)[1:], ["error: none", "102 µs, base 100 µs: +2.0 % (+2.0 to +2.0)",
                                                   "the base", "≤ +3 %", "yes"])  # fmt: skip
        self.assertEqual(self.overhead(1.04)[-1], "no")

    def test_a_limit_is_the_slower_of_moving_and_computing(self):
        copy = {"ours": {"us": 1.0, "bytes": 1e6}}
        product = {"ours": {"us": 1e6}, "peer": {"eager_us": 2e6}}
        limits = tables.Limits({"micro": {"copy": copy, "matmul-8192x8192x8192": product}})
        self.assertAlmostEqual(limits.us({"bytes": 2e6, "flops": 0}), 2.0)
        self.assertAlmostEqual(limits.us({"bytes": 0, "flops": 2 * 8192**3}), 1e6)


if __name__ == "__main__":
    unittest.main()
