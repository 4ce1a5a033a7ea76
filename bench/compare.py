"""Two commits' results: python3 bench/compare.py A.json B.json

For each work and number of threads that both have: taper's time in B over that in A, below 1 where B is faster. The runs
were not paired, so the spread is that of the quartiles (B's lower over A's upper to B's upper over A's lower), and the
last column is the ratio of the shares of the machine's limit, from which a slower or faster machine cancels.
"""

import json
import statistics
import sys
from pathlib import Path

import report


def compared(a, b):
    """(ratio, lowest, highest) of times, and the ratio of shares or None."""
    times = [report.quartiles(report.best(work, "taper")[1]["seconds"]) for work in (a, b)]
    shares = [report.shares(work) for work in (a, b)]
    ratio = (times[1][1] / times[0][1], times[1][0] / times[0][2], times[1][2] / times[0][0])
    return ratio, statistics.median(shares[1]) / statistics.median(shares[0]) if all(shares) else None


def table(a, b):
    lines = [
        f"A: {a['commit']}, {a['date']}, {a['machine']['processor']}",
        f"B: {b['commit']}, {b['date']}, {b['machine']['processor']}",
        "",
        "| work | threads | time, B / A | spread | share of limit, B / A |",
        "|---|---|---|---|---|",
    ]
    of_a = {(work["name"], work["threads"]): work for work in a["works"]}
    for work in b["works"]:
        other = of_a.get((work["name"], work["threads"]))
        if other and report.best(work, "taper") and report.best(other, "taper"):
            (ratio, low, high), share = compared(other, work)
            cells = [work["name"], str(work["threads"]), f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"]
            lines.append("| " + " | ".join([*cells, f"{share:.2f}" if share else ""]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.splitlines()[0])
    print(table(*(json.loads(Path(path).read_text()) for path in sys.argv[1:])), end="")
