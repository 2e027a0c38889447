"""Run the acts, and exit with 1 where a claim did not hold."""

from __future__ import annotations

import sys

from tests.demo import incident, memory
from tests.demo.claims import Claims


def main() -> int:
    """All acts, one after another."""
    claims = Claims()
    print("First act: the revoked set.\n")
    incident.act(claims)
    print("\nSecond act: a leaking child.\n")
    for claim, held in memory.act(print):
        claims.check(claim, held)
    if claims.failed:
        print(f"\n{len(claims.failed)} claim(s) did not hold.")
        return 1
    print("\nEvery claim held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
