"""Taper beside its peers, and beside what the machine can do.

    python3 bench/bench.py [--short] [--work PATTERN] [--threads 1,2] [--peers DIR] [--out DIR] ...

Each work is run by one process a contestant. Their results are compared first: one that differs from taper's is an
error of the run and is not timed. Then rounds follow: in each the machine's limit that binds the work and every
contestant in every way that it has are measured in turn, so that a ratio or a share is the median of the rounds'
pairs. A way that takes far longer than taper is measured once. A contestant that only has such, or that gives no
answer within some minutes, is named as too slow and not asked for works of that model and kind again. Prints a
Markdown table; writes bench.json (all samples), bench.md and ratios.svg. Standard library only; the peers live in
environments of their own (tools/bench-peers.sh) and a missing one is reported as absent.
"""

import argparse
import datetime
import fnmatch
import json
import math
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make_model
import report
from contestants import PEERS, Absent, Machine, TooSlow, open_contestant, peers_folder
from works import all_works

ROOT = Path(__file__).resolve().parent.parent
FAR_SLOWER = 10  # times taper's; a way that takes this and
LONG = 5.0  # seconds a call is measured once
SETTLE = 0.02  # seconds before a sample: threads of the one before fall asleep; those of OpenMP spin for 7 ms first


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--build", type=Path, default=ROOT / "build", help="where taper is built")
    p.add_argument("--peers", type=Path, default=peers_folder())
    p.add_argument("--with", dest="names", default=",".join(PEERS), help="contestants beside taper [%(default)s]; "
                   "reference is taper with plain kernels and nothing fused")  # fmt: skip
    p.add_argument("--work", action="append", metavar="PATTERN", help="only works whose name matches, such as 'lora*'")
    p.add_argument("--threads", help="numbers of threads, such as 2,1 [all and 1; short: all]")
    p.add_argument("--short", action="store_true", help="small works, few rounds: about a minute")
    p.add_argument("--rounds", type=int, help="rounds a work [21; short: 5]")
    p.add_argument("--seconds", type=float, help="begin no round after so many a work, but for three [20; short: 3]")
    p.add_argument("--out", type=Path, help="folder of the results [BUILD/bench/results]")
    p.add_argument("--list", action="store_true", help="name the works and end")
    a = p.parse_args(argv)
    everyone = len(os.sched_getaffinity(0))
    both = {everyone} if a.short else {1, everyone}
    a.threads = [int(t) for t in a.threads.split(",")] if a.threads else sorted(both, reverse=True)
    a.rounds = a.rounds or (5 if a.short else 21)
    a.seconds = a.seconds or (3 if a.short else 20)
    a.out = a.out or a.build / "bench" / "results"
    a.names = ["taper"] + [name for name in a.names.split(",") if name]
    return a


def chosen_works(a):
    patterns = a.work or ["*"]
    works = [w for w in all_works() if any(fnmatch.fnmatch(w.name, p) for p in patterns)]
    return [w for w in works if w.short] if a.short else works if a.work else [w for w in works if "tiny" not in w.name]


# ---- inputs ----


def write_values(path, values, shape):
    """A .npy file of given numbers: i32 where all are whole, else f32."""
    whole = all(isinstance(v, int) for v in values)
    header = f"{{'descr': '<{'i4' if whole else 'f4'}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    header = header.ljust(117) + "\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    path.write_bytes(start + struct.pack(f"<{len(values)}{'i' if whole else 'f'}", *values))


def make_inputs(work, folder, a):
    folder.mkdir(parents=True)
    for seed, (name, (kind, what, shape)) in enumerate(work.inputs.items()):
        path = folder / f"{name}.npy"
        if kind == "values":
            write_values(path, what, shape)
        else:
            words = [a.build / "bench" / "bench_data", kind, path, seed + 1, what, *shape]
            subprocess.run([str(w) for w in words], check=True)


def made(folder, make, sizes):
    """The folder, made at its first use and kept."""
    if not (folder / "complete").exists():
        make(sizes, folder)
        (folder / "complete").touch()
    return folder


def model_folders(work, a):
    """The directories of the work's model and adapter: models differ by their sizes, adapters of one by theirs."""
    words = [word for key, size in work.model.items() for word in (f"--{key.replace('_', '-')}", str(size))]
    sizes = make_model.parse(["unused", "--dtype", work.dtype, *words])
    own = [getattr(sizes, key) for key in ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab")]
    folder = a.build / "bench" / "models" / "-".join(map(str, [*own, work.dtype]))
    model = made(folder, make_model.make_model, sizes)
    adapter = made(folder / f"adapter-{sizes.rank}-{sizes.adapted or sizes.layers}", make_model.make_adapter, sizes)
    return model, adapter


def told_keys(work, scratch, a):
    """What contestants are told beside the work's own keys."""
    inputs = scratch / "inputs"
    make_inputs(work, inputs, a)
    found = {"inputs": inputs, "compile": int(not a.short)}
    if work.model:
        found["model"], found["adapter"] = model_folders(work, a)
    return found


# ---- results ----


def difference(ours, theirs, a):
    """The largest of all results, relative to the largest value."""
    worst = 0.0
    for path in sorted(ours.glob("*.npy")):
        words = [str(a.build / "bench" / "bench_data"), "compare", str(theirs / path.name), str(path)]
        done = subprocess.run(words, capture_output=True, text=True)
        found = float(done.stdout) if done.returncode == 0 else math.nan
        if not found <= worst:
            worst = found
    return worst


def check(work, opened, scratch, a):
    """Compares each way's results with taper's: {contestant: what is wrong}, {contestant: why it is too slow}."""
    wrong, slow, ours = {}, {}, scratch / "taper" / opened["taper"].ways[0]
    for name, contestant in opened.items():
        for way in list(contestant.ways):
            theirs = scratch / name / way
            try:
                contestant.results(way, theirs)
            except TooSlow as why:
                slow[name] = f"{way}: {why}"
                break
            except Absent as why:
                wrong[name] = f"{way}: {why}"
                break
            if name == "taper" and not list(theirs.glob("*.npy")):
                wrong[name] = "gave no result"
            found = difference(ours, theirs, a)
            if not found <= work.tolerance:
                wrong[name] = f"{way} differs by {found:.2g}, {work.tolerance:.2g} is allowed"
    return wrong, slow


# ---- measuring ----


def warm(contestant, way, a):
    """(seconds that a call took, how many calls last about as long as a sample should)"""
    once = contestant.run(way, 1)
    if once < 0.5:
        once = contestant.run(way, 2)
    return once, max(1, math.ceil((0.005 if a.short else 0.02) / max(once, 1e-9)))


class Series:
    """The samples of one way of one contestant, one a round."""

    def __init__(self, name, contestant, way, a):
        self.name, self.way, self.contestant, self.seconds = name, way, contestant, []
        self.far_slower = False  # than taper: what it took once is its only sample
        self.once, self.calls = warm(contestant, way, a)

    def sample(self):
        time.sleep(SETTLE)
        self.seconds.append(self.contestant.run(self.way, self.calls))

    def figures(self):
        return {"seconds": self.seconds, "peak_bytes": self.contestant.peak_bytes()}


def guarded(call, name, wrong):
    """The call's value; None, with the reason in `wrong`, if the contestant ended."""
    try:
        return call()
    except Absent as why:
        wrong[name] = f"ended while it was timed: {why}"
        return None


def warmed(timed, wrong, a):
    """All contestants' series."""
    made = [guarded(lambda: Series(n, c, way, a), n, wrong) for n, c in timed.items() for way in c.ways]
    all_series = [series for series in made if series]
    base = min((series.once for series in all_series if series.name == "taper"), default=0.0)
    for series in all_series:
        series.far_slower = series.once > max(LONG, FAR_SLOWER * base)
        if series.far_slower:
            series.seconds.append(series.once)
    return all_series


def rounds(work, all_series, machine, wrong, a):
    """(limits, what binds): a limit a round, and of each series a sample."""
    often, limits, bound, start = [s for s in all_series if not s.far_slower], [], "", time.monotonic()
    for number in range(a.rounds):
        if "taper" in wrong or number >= min(3, a.rounds) and time.monotonic() - start > a.seconds:
            break
        time.sleep(SETTLE)
        limit, bound = machine.limit(work)
        limits.append(limit)
        for series in often if number % 2 == 0 else reversed(often):
            if series.name not in wrong:
                guarded(series.sample, series.name, wrong)
    return limits, bound


def figures(all_series, wrong):
    """figures[contestant][way]"""
    found = {}
    for series in all_series:
        if series.name not in wrong:
            found.setdefault(series.name, {})[series.way] = series.figures()
    return found


def all_far_slower(all_series):
    """{contestant: why it is too slow} of those that have no other way."""
    near = {series.name for series in all_series if not series.far_slower}
    return {s.name: f"a call takes {s.once:.1f} s" for s in all_series if s.name not in near}


def likes(name, work):
    """A key of the works that a contestant is as slow in."""
    return " ".join([name, work.kind, *map(str, work.model.values())] if work.model else [name, work.name])


def open_all(work, threads, told, run, a):
    opened, missing = {}, {}
    for name in a.names:
        try:
            if likes(name, work) in run["slow"]:
                raise TooSlow(run["slow"][likes(name, work)])
            opened[name] = open_contestant(name, work, threads, told, a)
            if opened[name].version:
                run["versions"][name] = opened[name].version
        except Absent as why:
            missing[name] = str(why)
    return opened, missing


def measure(work, threads, machine, run, a):
    scratch = Path(tempfile.mkdtemp(prefix="taper-bench-"))
    opened = {}
    try:
        opened, missing = open_all(work, threads, told_keys(work, scratch, a), run, a)
        wrong = {} if "taper" in opened else {"taper": missing.get("taper", "absent")}
        late, found, limits, bound = {}, {}, [], ""
        if not wrong and not work.commands:
            wrong, late = check(work, opened, scratch, a)
        missing.update(late)
        timed = {name: c for name, c in opened.items() if name not in wrong and name not in late}
        if "taper" in timed:
            all_series = warmed(timed, wrong, a)
            limits, bound = rounds(work, all_series, machine, wrong, a)
            found = figures(all_series, wrong)
            late.update(all_far_slower(all_series))
        run["slow"].update({likes(name, work): f"{work.name}, {why}" for name, why in late.items()})
    finally:
        for contestant in opened.values():
            contestant.close()
        shutil.rmtree(scratch)
    return {
        "name": work.name, "threads": threads, "units": work.units, "flops": work.flops, "bytes": work.bytes,
        "model": bool(work.model), "limits": limits, "bound": bound, "series": found, "missing": missing, "wrong": wrong,
    }  # fmt: skip


# ---- the run ----


def machine_facts(a):
    facts = {"system": platform.platform(), "processor": platform.processor()}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            facts["processor"] = line.split(":", 1)[1].strip()
    facts["limits"] = []
    for threads in a.threads:
        path = a.out / "machine.json"
        words = [a.build / "bench" / "bench_machine", "--threads", threads, "--json", path]
        print(subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout)
        facts["limits"].append(json.loads(path.read_text()))
        path.unlink()
    return facts


def commit():
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def absent_everywhere(run):
    """Contestants that no work could have, with the reason."""
    reasons = {}
    for name in run["contestants"]:
        if not any(name in w["series"] or name in w["wrong"] for w in run["works"]):
            reasons[name] = next((w["missing"][name] for w in run["works"] if name in w["missing"]), "no work of its")
    return reasons


def write(run, a):
    """After every work: a run that is stopped leaves what it had."""
    run["absent"] = absent_everywhere(run)
    (a.out / "bench.json").write_text(json.dumps(run, indent=1) + "\n")
    (a.out / "bench.md").write_text(report.table(run))
    (a.out / "ratios.svg").write_text(report.plot(run))


def main():
    a = parse()
    works = chosen_works(a)
    if a.list:
        print(*(work.name for work in works), sep="\n")
        return 0
    if not works:
        sys.exit("no work has such a name: --list names them")
    a.out.mkdir(parents=True, exist_ok=True)
    run = {
        "commit": commit(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv[1:], "contestants": a.names, "versions": {}, "slow": {},
        "machine": machine_facts(a), "works": [],
    }  # fmt: skip
    for threads in a.threads:
        machine = Machine(threads, a)
        for work in works:
            print(f"{work.name}, {threads} thread{'s' * (threads > 1)}", file=sys.stderr, flush=True)
            run["works"].append(measure(work, threads, machine, run, a))
            write(run, a)
        machine.close()
    print(report.table(run))
    return 1 if any(work["wrong"] for work in run["works"]) else 0


if __name__ == "__main__":
    sys.exit(main())
