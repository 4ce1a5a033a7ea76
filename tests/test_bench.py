"""Tests of bench/: the driver's short run with taper and, as its peer, taper's plain kernels with nothing fused, so that
the contestant, its works and the reports cannot rot. No time is judged. Standard library only; TAPER_BUILD names the
build folder:

    TAPER_BUILD=build python3 tests/test_bench.py
"""

import json
import math
import os
import sys
import tempfile
import unittest
import unittest.mock as mock
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bench_programs import BUILD, folder_for, run, run_well

import bench as driver
import compare
import contestants
import growth
import report
import works

THREADS = (2,) if os.environ.get("TAPER_SANITIZE") else (1, 2)  # sanitized, a round of all works takes a minute


def bench(out, *words, run=run):
    return run("bench.py", "--build", BUILD, "--out", out, *words)


class ShortRunTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.out = folder_for(cls)
        words = ["--short", "--rounds", "1", "--threads", ",".join(map(str, THREADS))]
        words += ["--with", "reference,torch", "--peers", cls.out / "none"]
        cls.done = bench(cls.out, *words, run=run_well)
        cls.figures = json.loads((cls.out / "bench.json").read_text())

    def test_every_short_work_was_measured_on_each_number_of_threads(self):
        measured = {(work["name"], work["threads"]) for work in self.figures["works"]}
        wanted = {(work.name, threads) for work in works.all_works() if work.short for threads in THREADS}
        self.assertEqual(measured, wanted)

    def test_every_kind_of_work_is_among_the_short_ones(self):
        kinds = {work.kind for work in works.all_works()}
        self.assertEqual({work.kind for work in works.all_works() if work.short}, kinds - {"linear"})

    def test_results_equal_those_of_the_plain_kernels(self):
        for work in self.figures["works"]:
            self.assertEqual(work["wrong"], {}, work["name"])
            compared = {"taper"} if work["name"] == "cold_start" else {"taper", "reference"}
            self.assertEqual(set(work["series"]), compared, work["name"])

    def test_samples_and_limits_are_times(self):
        for work in self.figures["works"]:
            for ways in work["series"].values():
                for series in ways.values():
                    self.assertEqual(len(series["seconds"]), 1)
                    self.assertTrue(all(math.isfinite(t) and t > 0 for t in series["seconds"]), work["name"])
            stated = work["flops"] or work["bytes"]
            self.assertTrue(all((limit > 0) == bool(stated) for limit in work["limits"]), work["name"])

    def test_the_machine_is_stated(self):
        for limits, threads in zip(self.figures["machine"]["limits"], THREADS):
            self.assertEqual(limits["threads"], threads)
            self.assertGreater(limits["f32"], 0)
            self.assertEqual(limits["levels"][-1]["name"], "memory")

    def test_a_missing_peer_is_absent_with_its_reason(self):
        self.assertEqual(self.figures["absent"], {"torch": "not installed (make bench-peers)"})
        self.assertIn("torch is absent: not installed", self.done.stdout)

    def test_the_table_has_a_row_of_equal_width_for_each_work(self):
        rows = [line for line in (self.out / "bench.md").read_text().splitlines() if line.startswith("|")]
        self.assertEqual(len(rows), len(self.figures["works"]) + 2 * len(THREADS))
        self.assertEqual({row.count("|") for row in rows}, {rows[0].count("|")})

    def test_the_plot_is_xml_with_a_bar_for_each_ratio(self):
        root = ElementTree.parse(self.out / "ratios.svg").getroot()
        bars = root.findall("{http://www.w3.org/2000/svg}rect")[1:]
        self.assertEqual(len(bars), sum("reference" in work["series"] for work in self.figures["works"]))

    def test_comparing_a_run_with_itself_gives_one(self):
        rows = [line.split(" | ") for line in compare.table(self.figures, self.figures).splitlines() if line.startswith("| ")]
        self.assertEqual(len(rows) - 1, len(self.figures["works"]))
        self.assertEqual({row[2] for row in rows[1:]}, {"1.00"})


class SlowTest(unittest.TestCase):
    """The driver beside contestants of a script."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="taper-bench-test-")
        self.addCleanup(folder.cleanup)
        self.scratch = Path(folder.name)

    def contestant(self, answer):
        script = f"import sys\nprint('ready 1 eager', flush=True)\nfor line in sys.stdin:\n    {answer}"
        made = contestants.Contestant([sys.executable, "-c", script], 1)
        self.addCleanup(made.close)
        return made

    def test_no_answer_in_time_is_too_slow_and_an_end_is_not(self):
        with mock.patch.object(contestants, "PATIENCE", 0.2):
            with self.assertRaisesRegex(contestants.TooSlow, "no answer within 0.2 s"):
                self.contestant("__import__('time').sleep(60)").results("eager", self.scratch)
            with self.assertRaises(contestants.Absent) as caught:
                self.contestant("sys.exit('ended')").results("eager", self.scratch)
        self.assertEqual(str(caught.exception), "ended")
        self.assertNotIsInstance(caught.exception, contestants.TooSlow)

    def test_a_way_that_is_far_slower_is_measured_once_and_named(self):
        opened = {"taper": self.contestant("print(0.5, flush=True)"), "slow": self.contestant("print(6, flush=True)")}
        opened["near"] = self.contestant("print(4, flush=True)")
        machine, wrong = mock.Mock(limit=lambda work: (0.1, "peak")), {}
        options = mock.Mock(rounds=3, seconds=60, short=True)
        series = driver.warmed(opened, wrong, options)
        limits, _ = driver.rounds(None, series, machine, wrong, options)
        self.assertEqual((wrong, len(limits)), ({}, 3))
        found = driver.figures(series, wrong)
        samples = {name: len(ways["eager"]["seconds"]) for name, ways in found.items()}
        self.assertEqual(samples, {"taper": 3, "slow": 1, "near": 3})
        self.assertEqual(driver.all_far_slower(series), {"slow": "a call takes 6.0 s"})
        work = {"series": found}
        self.assertEqual((report.ratios(work, "slow"), report.ratios(work, "near")), ([12.0], [8.0] * 3))


class GrowthTest(unittest.TestCase):
    AXES = "length batch rank adapted depth prompt generate graph processes".split()
    if os.environ.get("TAPER_SANITIZE"):
        AXES = ["rank", "generate", "processes"]  # of each kind one
    SMALL = "--hidden 64 --layers 2 --heads 2 --kv-heads 1 --ffn 96 --vocab 256".split()

    @classmethod
    def setUpClass(cls):
        cls.out = folder_for(cls)
        words = ["--build", BUILD, "--out", cls.out, "--most", "256", *cls.SMALL, "--turns", "2", "--rounds", "1"]
        words += [word for name in cls.AXES for word in ("--axis", name)]
        run_well("growth.py", *words, "--with", "reference")
        cls.figures = json.loads((cls.out / "growth.json").read_text())

    def test_every_axis_grows_and_every_point_is_measured_and_right(self):
        self.assertEqual([axis["name"] for axis in self.figures["axes"]], self.AXES)
        for axis in self.figures["axes"]:
            points = axis["points"]
            self.assertGreaterEqual(len(points), 2, axis["name"])
            self.assertEqual([p["x"] for p in points], sorted(p["x"] for p in points))
            for point in points:
                self.assertIsNotNone(growth.rates(point, "taper"), axis["name"])
                if axis["name"] != "processes":
                    self.assertEqual(len(point["series"]["taper"]["lazy"]["seconds"]), 2, "a sample a turn")
                self.assertEqual(point["wrong"], {}, axis["name"])

    def test_the_pictures_are_what_they_are_called(self):
        root = ElementTree.parse(self.out / "growth.svg").getroot()
        self.assertEqual(root.tag, "{http://www.w3.org/2000/svg}svg")
        self.assertEqual((self.out / "growth.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

    def test_growing_as_the_arithmetic_does_is_no_excess(self):
        points = [{"x": n, "units": n, "cost": n * n, "series": {"taper": {"lazy": {"seconds": [n * n * 1e-3]}}}}
                  for n in (1, 2, 4)]  # fmt: skip
        axis = {"points": points}
        self.assertEqual([round(e, 6) for e in growth.excesses(axis)], [1, 1])
        self.assertEqual([(x, round(rate, 6)) for x, rate in growth.asked(axis)], [(1, 1000), (2, 500), (4, 250)])


class WrongAnswerTest(unittest.TestCase):
    def test_a_wrong_result_is_an_error_of_the_run_and_is_not_timed(self):
        """A peer that answers with zeros."""
        with tempfile.TemporaryDirectory(prefix="taper-bench-test-") as folder:
            python = Path(folder) / "mlx" / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text(f"#!/bin/sh\nexec {sys.executable} {folder}/zeros.py\n")
            python.chmod(0o755)
            header = "{'descr': '<f4', 'fortran_order': False, 'shape': (16,), }".ljust(117) + "\n"
            (Path(folder) / "zeros.py").write_text(
                "import sys\nprint('ready zeros-1 eager', flush=True)\nfor line in sys.stdin:\n"
                "    out = open(line.split(None, 2)[2].strip() + '/y.npy', 'wb')\n"
                f"    out.write(b'\\x93NUMPY\\x01\\x00\\x76\\x00' + {header!r}.encode() + bytes(64))\n"
                "    out.close()\n    print('done', flush=True)\n"
            )
            words = ["--with", "mlx", "--peers", folder, "--work", "add_chain-1000-fused", "--rounds", "1"]
            done = bench(Path(folder) / "out", "--short", "--threads", "1", *words)
            self.assertEqual(done.returncode, 1, done.stderr)
            (work,) = json.loads((Path(folder) / "out" / "bench.json").read_text())["works"]
            self.assertIn("eager differs by 1", work["wrong"]["mlx"])
            self.assertEqual(set(work["series"]), {"taper"})


class EndedTest(unittest.TestCase):
    def test_a_contestant_that_ends_is_wrong_and_the_others_go_on(self):
        with tempfile.TemporaryDirectory(prefix="taper-bench-test-") as folder:
            python = Path(folder) / "mlx" / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.write_text("#!/bin/sh\necho ready ended-1 eager\necho out of breath >&2\nexit 1\n")
            python.chmod(0o755)
            words = ["--with", "mlx", "--peers", folder, "--work", "add_chain-1000-fused", "--rounds", "1"]
            done = bench(Path(folder) / "out", "--short", "--threads", "1", *words)
            self.assertEqual(done.returncode, 1, done.stderr)
            (work,) = json.loads((Path(folder) / "out" / "bench.json").read_text())["works"]
            self.assertEqual(work["wrong"], {"mlx": "eager: out of breath"})
            self.assertEqual(set(work["series"]), {"taper"})


class FiguresTest(unittest.TestCase):
    WORK = {
        "name": "w", "threads": 1, "units": 1, "limits": [1.0, 1.0, 1.0], "bound": "f32 peak", "wrong": {},
        "series": {
            "taper": {"lazy": {"seconds": [2.0, 4.0, 2.0]}},
            "torch": {"eager": {"seconds": [9.0, 9.0, 9.0]}, "compile": {"seconds": [4.0, 4.0, 8.0]}},
        },
    }  # fmt: skip

    def test_turns_are_joined_of_what_all_have_measured(self):
        def found(wrong, **seconds):
            return {"series": {n: {"lazy": {"seconds": s}} for n, s in seconds.items()}, "wrong": wrong}

        known = found({}, taper=[1], torch=[2], mlx=[3])
        growth.join(known, found({"mlx": "other losses"}, taper=[4]))
        self.assertEqual(known["series"], {"taper": {"lazy": {"seconds": [1, 4]}}})
        self.assertEqual(known["wrong"], {"mlx": "other losses", "torch": "not measured in every turn"})

    def test_a_ratio_is_of_the_rounds_pairs_with_the_peers_best_way(self):
        self.assertEqual(report.ratios(self.WORK, "torch"), [2.0, 1.0, 4.0])

    def test_a_share_is_of_the_rounds_pairs(self):
        self.assertEqual(report.shares(self.WORK), [0.5, 0.25, 0.5])

    def test_a_peer_that_was_not_measured_has_no_ratio(self):
        self.assertIsNone(report.ratios(self.WORK, "mlx"))

    def test_times(self):
        texts = [report.time_text(t) for t in (2.5e-9, 51e-9, 1.234e-6, 250e-6, 0.0123, 0.9, 12.0)]
        self.assertEqual(texts, ["2.5 ns", "51 ns", "1.23 µs", "250 µs", "12.3 ms", "900 ms", "12.00 s"])


class ContestantTest(unittest.TestCase):
    def test_an_unknown_work_is_absent(self):
        with self.assertRaisesRegex(contestants.Absent, "no work nothing"):
            contestants.Contestant([str(BUILD / "bench" / "bench_contestant"), "nothing"], 1)


if __name__ == "__main__":
    unittest.main()
