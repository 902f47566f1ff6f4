"""Two runs beside each other: `python -m bench.gpu.compare DIR DIR`, as before and after a change.

Prints, for every row that both have, the times and their ratio, the largest changes first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.results import Results, results_in


def compare(before: Results, after: Results) -> list[str]:
    """Lines of a table."""
    times = [
        {row.what: row.milliseconds for rows in each.rows.values() for row in rows}
        for each in (before, after)
    ]
    found = [
        (new / old, old, new, what)
        for what, old in times[0].items()
        if old and (new := times[1].get(what))
    ]
    found.sort(key=lambda each: max(each[0], 1 / each[0]), reverse=True)
    lines = [f"before: {before.heading}", f"after: {after.heading}", " ratio  before ms   after ms"]
    return lines + [
        f"{ratio:6.3f} {old:10.4g} {new:10.4g}  {what}" for ratio, old, new, what in found
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 2 after a sentence on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.compare", description="Two runs beside each other."
    )
    parser.add_argument("before", type=Path, help="folder of results")
    parser.add_argument("after", type=Path, help="folder of results")
    arguments = parser.parse_args(argv)
    try:
        both = [_results(each) for each in (arguments.before, arguments.after)]
    except ValueError as error:
        print(f"bench.gpu.compare: {error}", file=sys.stderr)
        return 2
    print("\n".join(compare(*both)))
    return 0


def _results(folder: Path) -> Results:
    found = results_in(folder)
    if not found.rows:
        raise ValueError(f"{folder} holds no results: must be the --out of a run of bench.gpu")
    return found


if __name__ == "__main__":
    sys.exit(main())
