"""Print every figure, with the aim that it is held against."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.bench import leaving, memory, results, revocations, start, sweep, throughput
from tests.bench.figure import Figure


def _printing(run: Callable[[], list[Figure]]) -> Callable[[], None]:
    def bench() -> None:
        for figure in run():
            print(figure, flush=True)

    return bench


def _memory() -> None:
    memory.main()


BENCHES: dict[str, Callable[[], None]] = {
    "start": _printing(start.run),
    "sweep": _printing(sweep.run),
    "throughput": _printing(throughput.run),
    "memory": _memory,
    "leaving": leaving.main,
    "results": results.main,
    "revocations": _printing(revocations.run),
}


def main(names: list[str]) -> None:
    """Run the benches that are named, or all."""
    if unknown := set(names) - BENCHES.keys():
        raise SystemExit(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    for name in names or BENCHES:
        print(f"-- {name}", flush=True)
        BENCHES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
