"""Print every figure, with the aim that it is held against."""

from __future__ import annotations

import sys

from tests.bench import start, sweep, throughput

BENCHES = {"start": start.run, "sweep": sweep.run, "throughput": throughput.run}


def main(names: list[str]) -> None:
    """Run the benches that are named, or all."""
    for name in names or BENCHES:
        print(f"-- {name}", flush=True)
        for figure in BENCHES[name]():
            print(figure, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
