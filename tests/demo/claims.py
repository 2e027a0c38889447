"""What a demo claims, and whether it held."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Claims:
    """Collects claims while an act runs; a claim that does not hold ends the demo with 1."""

    failed: list[str] = field(default_factory=list)

    def check(self, claim: str, held: object) -> None:
        """Print one claim with what became of it."""
        print(f"  [{'ok' if held else 'NOT SO'}] {claim}", flush=True)
        if not held:
            self.failed.append(claim)
