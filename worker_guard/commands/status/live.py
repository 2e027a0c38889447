"""``celery guard watch``: the overview, and as much of each worker as fits on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from worker_guard.commands.status.asking import BROKER_S, Asked
from worker_guard.commands.status.screen import (
    FULL_CHILDREN,
    WIDE,
    brief,
    overview,
    plain,
    section,
    verdict,
)
from worker_guard.commands.status.terminal import Keys
from worker_guard.commands.status.view import Answers, Fleet, Remembered, WorkerRow, read_fleet
from worker_guard.values.counts import count
from worker_guard.values.durations import duration

#: Seconds after which a key, a new size of the window or an answer is noticed.
LOOK_S = 0.1

Line = list[Segment]

#: The verdict while no worker can be asked.
_UNKNOWN = Text("unknown: no worker answers, and the figures are old", "bold red")


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """As much of these workers as fits on one screen: troubles first, the verdict last."""

    fleet: Fleet
    head: Text
    trouble: Text | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lines, no more than the screen has."""
        wide = options.max_width >= WIDE
        height = options.height or console.height

        def drawn(renderable: RenderableType) -> list[Line]:
            return console.render_lines(renderable, options.update(height=None), pad=False)

        last = drawn(_UNKNOWN if self.trouble else verdict(self.fleet))
        # One line is for the note on what is left out; it is empty if nothing is.
        room = height - len(last) - 1
        lines = drawn(self.head) + (drawn(self.trouble) if self.trouble else []) + [[]]
        table, listed = self._overview(drawn, room - len(lines), wide=wide)
        lines += table
        blocks, told, in_full = self._workers(drawn, room - len(lines), wide=wide)
        lines = (lines + blocks)[:room]
        note = drawn(self._note(listed, told, in_full))[:1]
        for line in [*lines, *note, *last][-height:]:
            yield from line
            yield Segment.line()

    def _overview(
        self, drawn: Callable[[RenderableType], list[Line]], room: int, *, wide: bool
    ) -> tuple[list[Line], int]:
        """The table of all workers, or of the worst if there is no room for all."""
        workers = self.fleet.worst_first()
        lines = drawn(overview(workers, wide=wide)) if workers else []
        while len(lines) > max(room, 0) and workers:
            # A row may be several lines high, so this may take a few rounds.
            too_many = (len(lines) - room) * len(workers) // len(lines)
            workers = workers[: max(0, len(workers) - max(1, too_many))]
            lines = drawn(overview(workers, wide=wide)) if workers else []
        return lines, len(workers)

    def _workers(
        self, drawn: Callable[[RenderableType], list[Line]], room: int, *, wide: bool
    ) -> tuple[list[Line], int, int]:
        """The troubles of as many workers as possible, and as many as possible in full.

        Returns also how many workers' troubles are shown, and how many workers are in full.
        """
        workers = self.fleet.worst_first()
        ill = [worker for worker in workers if worker.troubles]
        # The troubles of all come before what to do about some.
        to_do = len(_briefly(ill, drawn)) <= room
        told = len(ill)
        while told and len(_briefly(ill[:told], drawn, to_do=to_do)) > room:
            told -= 1
        lines: list[Line] = []
        in_full = 0
        # A worker is shown in full if the troubles of the others still fit below.
        for worker in workers if to_do else []:
            rest = _briefly(ill[in_full + 1 :], drawn)
            block = _first_that_fits(worker, drawn, room - len(lines) - len(rest) - 1, wide=wide)
            if block is None:
                break
            lines += [[], *block]
            in_full += 1
        return lines + _briefly(ill[in_full:told], drawn, to_do=to_do), told, in_full

    def _note(self, listed: int, told: int, in_full: int) -> Text:
        total = len(self.fleet.workers)
        ill = sum(bool(worker.troubles) for worker in self.fleet.workers)
        if listed < total:
            rest = self.fleet.worst_first()[listed:]
            those = sum(bool(worker.troubles) for worker in rest)
            return Text(
                f"and {count(len(rest), 'more worker')}, {those} of them in trouble", "bold"
            )
        if told < ill:
            return Text(f"{ill - told} more in trouble: enlarge the window, or use -d NAME", "bold")
        if in_full < total:
            return Text(
                f"{total - in_full} more in full: enlarge the window, or use -d NAME", "bold"
            )
        return Text("")


def _briefly(
    workers: Sequence[WorkerRow],
    drawn: Callable[[RenderableType], list[Line]],
    *,
    to_do: bool = True,
) -> list[Line]:
    """The troubles of these workers, below an empty line."""
    return [[], *drawn(brief(workers, to_do=to_do))] if workers else []


def _first_that_fits(
    worker: WorkerRow,
    drawn: Callable[[RenderableType], list[Line]],
    room: int,
    *,
    wide: bool,
) -> list[Line] | None:
    for children in (FULL_CHILDREN, 3, 1):
        block = drawn(section(worker, wide=wide, children=children))
        if len(block) <= room:
            return block
    return None


@dataclass
class Watch:
    """Asks every ``interval_s``, and remembers the last answers.

    ``told`` turns an error into a line for people.
    """

    asked: Asked
    interval_s: float
    timeout_s: float
    monotonic: Callable[[], float]
    told: Callable[[Exception], str] = str
    fleet: Fleet = field(default_factory=Fleet)
    _remembered: Remembered = field(default_factory=Remembered)
    _trouble: str = ""
    _begun_mono: float = 0.0
    _heard_mono: float = 0.0

    def hear(self) -> None:
        """Take the outcome of the current round, if it is over."""
        try:
            answers = self.asked.outcome(0.0)
        except Exception as exc:  # noqa: BLE001 - shown, and tried again
            self._trouble = self.told(exc)
            return
        if answers is not None:
            self.take(answers)

    def take(self, answers: Answers) -> None:
        """Take these as the last answers."""
        now = self.monotonic()
        self._heard_mono = now
        self.fleet = self._remembered.add(read_fleet(answers), now, answers.left)
        silent = not answers.present and not self.fleet.all_gone
        self._trouble = "no worker answered" if silent else ""

    def begin_when_due(self) -> None:
        """Begin the next round if the interval is over and no round is under way."""
        now = self.monotonic()
        if now - self._begun_mono >= self.interval_s and self.asked.begin():
            self._begun_mono = now

    def dashboard(self) -> Dashboard:
        """What to show now."""
        now = self.monotonic()
        head = f"celery guard watch  every {self.interval_s:g} s"
        silent_s = now - self._heard_mono
        trouble = self._trouble
        if not trouble and silent_s > self.interval_s + 2 * self.timeout_s + BROKER_S:
            trouble = "The broker does not answer"
        if trouble:
            trouble += f"; this is the state of {duration(silent_s)} ago"
        return Dashboard(
            fleet=self.fleet,
            head=Text(f"{head}  q ends", "bold"),
            trouble=_red(trouble) if trouble else None,
        )


def show(watch: Watch, console: Console, keys: Keys) -> None:
    """Show it until q is typed; Ctrl-C raises KeyboardInterrupt. Restores the terminal."""
    with keys, Live(console=console, screen=True, auto_refresh=False) as live:
        shown: tuple[object, ...] = ()
        while True:
            watch.begin_when_due()
            watch.hear()
            dashboard = watch.dashboard()
            # Redrawn if something differs, the size of the window included.
            current = (dashboard, console.size)
            if current != shown:
                live.update(dashboard, refresh=True)
                shown = current
            if keys.quit_within(LOOK_S):
                return


def _red(text: str) -> Text:
    line = plain(text)
    line.stylize("bold red")
    return line
