"""The protocol of a contestant, for the peers: bench/contestant.h says what is asked and answered.

A peer calls `serve` with a function that makes a work: it gets the work's name and its keys and returns an Entry, or
None where the peer has no such work.
"""

import sys
import time
from pathlib import Path


class Entry:
    """`ways` names functions that do the work once and return when it is done; `results` maps a way to a function
    that returns NumPy f32 arrays by name. A way may say itself how long a call took by returning a float."""

    def __init__(self, ways, results):
        self.ways, self.results = ways, results


def entry(keys, ways, call, named):
    """An Entry of functions by way, or of the one way that the keys ask for: call(f) does the work, named(f) gives
    its results."""
    if keys.get("only") in ways:
        ways = {keys["only"]: ways[keys["only"]]}
    return Entry(
        {way: lambda f=f: (call(f), None)[1] for way, f in ways.items()},
        {way: lambda f=f: named(f) for way, f in ways.items()},
    )


class Keys(dict):
    def number(self, key, otherwise=0):
        return int(self.get(key, otherwise))


def run(call, times):
    """Seconds a call. What the call measured itself counts, where it did."""
    own, start = 0.0, time.perf_counter()
    for _ in range(times):
        took = call()
        own += took if isinstance(took, float) else 0.0
    return (own or time.perf_counter() - start) / times


def serve(version, make):
    import numpy

    keys = Keys(word.split("=", 1) for word in sys.argv[2:])
    entry = make(sys.argv[1], keys)
    if entry is None:
        print(f"absent no work {sys.argv[1]}", flush=True)
        return
    print("ready", version, *entry.ways, flush=True)
    for line in sys.stdin:
        order, way, rest = line.split(None, 2)
        if order == "result":
            for name, values in entry.results[way]().items():
                numpy.save(Path(rest.strip()) / f"{name}.npy", numpy.asarray(values, dtype="<f4", order="C"))
            print("done", flush=True)
        elif order == "run":
            print(f"{run(entry.ways[way], int(rest)):.9g}", flush=True)
        else:
            sys.exit(f"no such order: {line}")
