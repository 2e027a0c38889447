"""The rows as text for a terminal, a pipe or a file; nothing that is shown is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType, RenderResult
from rich.filesize import decimal
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker_guard.status.reply import Cleanup, GuardState, Memory, Process, Revoked
from worker_guard.status.view import Fleet, WorkerRow, biggest, duration, share

#: From this width on a task stands beside its child; below it, in lines of its own.
WIDE = 120

#: Of more workers than this only those in trouble are shown in full.
FULL_WORKERS = 8

#: The biggest children of a worker that are shown one by one.
FULL_CHILDREN = 8

#: In a pipe nothing is folded, unless COLUMNS asks for it.
UNFOLDED = 10_000

BAR_WIDTH = 12

_UNKNOWN = "?"
_NONE = "-"


def plain(text: str) -> Text:
    """Text of a worker's making: what could move a cursor, or is no character, is made visible."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def full(fleet: Fleet, *, wide: bool, everything: bool) -> RenderResult:
    """The overview, and in full the workers that it makes sense to show so."""
    yield overview(fleet.workers, wide=wide)
    shown = [worker for worker in fleet.workers if worker.troubles]
    if everything or len(fleet.workers) <= FULL_WORKERS:
        shown = list(fleet.workers)
    for worker in shown:
        yield ""
        yield section(worker, wide=wide, children=None if everything else FULL_CHILDREN)
    if rest := len(fleet.workers) - len(shown):
        yield ""
        yield f"{rest} workers are well and not shown in full; --all shows them"


def written(console: Console, fleet: Fleet, *, everything: bool = False) -> str:
    """All of it as text for this console, without blanks at the ends of lines."""
    with console.capture() as captured:
        for block in full(fleet, wide=console.width >= WIDE, everything=everything):
            console.print(block)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def overview(workers: Sequence[WorkerRow], *, wide: bool) -> Table:
    """One row for each worker."""
    long, short = ("operator", "expired", "proven", "unproven"), ("oper", "exp", "prov", "unpr")
    names = ("worker", "pool", *(long if wide else short), "memory", "cleanup", "state")
    table = _table(*names, gap=2 if wide else 1)
    for column in table.columns[2:8]:
        column.justify = "right"
    for worker in workers:
        guard = worker.guard
        cells = [Text(_NONE)] * 7 if guard is None else _overview_cells(guard)
        table.add_row(plain(worker.name), *cells, _state(worker))
    return table


def _overview_cells(guard: GuardState) -> list[Text]:
    revoked = guard.revoked
    ids = [_NONE] * 4
    if revoked is not None:
        found = (revoked.operator, revoked.expired, revoked.proven, revoked.unproven)
        ids = [_count(number) for number in found]
    size = _UNKNOWN if guard.concurrency is None else str(guard.concurrency)
    cleaned = guard.last_cleanup
    return [
        plain(f"{guard.pool or _UNKNOWN} {size}"),
        *map(Text, ids),
        _worst(guard.memory),
        Text(_NONE if cleaned is None else _ago(cleaned.age_s)),
    ]


def _worst(memory: Memory | None) -> Text:
    """The largest share of a limit; without any limit the most that a process uses."""
    if memory is None:
        return Text(_NONE)
    shares = [share(child, memory.child_limit_bytes) for child in memory.children]
    shares.append(share(memory.main, memory.main_limit_bytes))
    known = [value for value in shares if value is not None]
    if known:
        return _percent(max(known))
    sizes = [process.used_bytes for process in (memory.main, *memory.children)]
    return Text(decimal(max(size or 0 for size in sizes)))


def _state(worker: WorkerRow) -> Text:
    if worker.guard is None:
        return Text(_words(worker.troubles[0].kind), "bold red")
    kinds = sorted({_words(trouble.kind) for trouble in worker.troubles})
    if worker.guard.dry_run:
        kinds.append("dry run")
    return Text(", ".join(kinds) or "ok", "bold red" if worker.troubles else "green")


def section(worker: WorkerRow, *, wide: bool, children: int | None = FULL_CHILDREN) -> Group:
    """All that is known of one worker, with so many of its children (None: all)."""
    guard = worker.guard
    facts = _troubles(worker)
    processes: Iterable[RenderableType] = ()
    if guard is not None:
        for name, fact in _facts(guard):
            facts.add_row(name, fact)
        if guard.memory is not None:
            processes = _processes(guard.memory, count=children, wide=wide)
    return Group(_headline(worker), _indented(facts), *map(_indented, processes))


def brief(worker: WorkerRow) -> Group:
    """What is the matter with one worker, and nothing else."""
    return Group(_headline(worker), _indented(_troubles(worker)))


def _troubles(worker: WorkerRow) -> Table:
    table = _table("", "", head=False)
    for trouble in worker.troubles:
        text = plain(trouble.text)
        text.stylize("red")
        table.add_row(Text(_words(trouble.kind), "bold red"), text)
    return table


def _headline(worker: WorkerRow) -> Text:
    line = plain(worker.name)
    line.stylize("bold")
    guard = worker.guard
    if guard is None:
        return line
    pool = guard.pool or "unknown pool"
    busy = "" if guard.active_tasks is None else f", {guard.active_tasks} running"
    facts = [f"{pool}, concurrency {guard.concurrency or _UNKNOWN}{busy}"]
    if guard.uptime_s is not None:
        facts.append(f"up {duration(guard.uptime_s)}")
    facts.append(f"guard {guard.version}")
    line.append_text(plain("  " + "  ".join(facts)))
    if guard.dry_run:
        line.append("  DRY RUN", "bold yellow")
    return line


def _facts(guard: GuardState) -> Iterable[tuple[str, Text]]:
    if guard.revoked is not None:
        yield "revoked", Text(_revoked(guard.revoked))
    yield "cleanup", Text(_cleanup(guard.last_cleanup, dry_run=guard.dry_run))
    if guard.last_results_cleanup is not None:
        yield "results", Text(_cleanup(guard.last_results_cleanup, dry_run=guard.dry_run))
    if guard.totals:
        names = sorted(guard.totals)
        told = ", ".join(_total(name, guard.totals[name]) for name in names)
        yield "totals", plain(told)
    if guard.memory is not None:
        yield "limits", Text(_limits(guard.memory))
    for name, why in guard.off.items():
        yield "off", plain(f"{name}: {why}")


def _total(name: str, count: object) -> str:
    return "1 sweep" if (name, count) == ("sweeps", 1) else f"{count} {_words(name)}"


def _revoked(revoked: Revoked) -> str:
    origins = ("operator", "expired", "proven", "unproven")
    told = ", ".join(f"{_count(getattr(revoked, name))} {name}" for name in origins)
    return f"{_count(revoked.total)} ids: {told}; {_count(revoked.stamps)} stamps"


def _cleanup(cleanup: Cleanup | None, *, dry_run: bool) -> str:
    if cleanup is None:
        return "none so far"
    would = "would be " if dry_run else ""
    return (
        f"{_ago(cleanup.age_s)} ago ({cleanup.trigger or _UNKNOWN}): "
        f"{_count(cleanup.revoked_tasks_cleared)} ids {would}cleared, "
        f"{_count(cleanup.expired_results_deleted)} results {would}deleted, "
        f"{_count(cleanup.task_states_cleaned)} lifetimes {would}set"
    )


def _limits(memory: Memory) -> str:
    child, main = memory.child_limit_bytes, memory.main_limit_bytes
    of_child = "none" if child is None else decimal(child)
    of_main = "none" if main is None else decimal(main)
    return f"{of_child} for each child, {of_main} for the main process"


def _processes(memory: Memory, *, count: int | None, wide: bool) -> Iterable[RenderableType]:
    """The main process, the biggest children, what these run, and how many more there are."""
    children = biggest(memory.children, count)
    numbers = ("memory", "of limit", "", "age", "recycled")
    table = _table("process", *numbers, *(["runs"] if wide else []))
    for index in (1, 3, 4, 5):
        table.columns[index].justify = "right"
    table.add_row(*_process("main", memory.main, memory.main_limit_bytes))
    for child in children:
        cells = _process("leaving" if child.leaving else "child", child, memory.child_limit_bytes)
        table.add_row(*cells, *([_task(child)] if wide else []))
    yield table
    if not wide and any(child.task for child in children):
        running = _table("child", "runs")
        for child in children:
            if child.task is not None:
                running.add_row(_pid(child), _task(child))
        yield running
    if len(children) < len(memory.children):
        others = biggest(memory.children, None)[len(children) :]
        top = max(child.used_bytes or 0 for child in others)
        busy = sum(child.task is not None for child in others)
        yield Text(f"and {len(others)} more children: {decimal(top)} at most, {busy} of them busy")


def _process(label: str, process: Process, limit_bytes: int | None) -> list[RenderableType]:
    used, part = process.used_bytes, share(process, limit_bytes)
    return [
        f"{label} {_pid(process)}",
        "unread" if used is None else f"{decimal(used)} {process.metric.upper()}",
        _bar(part) if part is not None else "" if limit_bytes else "no limit",
        "" if part is None else _percent(part),
        _ago(process.age_s),
        "" if process.recycles is None else str(process.recycles),
    ]


def _bar(part: float) -> ProgressBar:
    style = _style(part)
    return ProgressBar(
        total=1.0,
        completed=min(part, 1.0),
        width=BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _task(process: Process) -> Text:
    task = process.task
    if task is None:
        return Text(_NONE)
    since = "" if task.running_s is None else f" for {duration(task.running_s)}"
    return plain(f"{task.task_name or _UNKNOWN} {task.task_id}{since}")


def _style(part: float) -> str:
    return "red" if part > 1 else "yellow" if part > 0.8 else "green"


def _percent(part: float) -> Text:
    # Rounded down, so that nothing within its limit seems to be at it; one over it never seems in.
    whole = int(part * 100)
    return Text(f"{max(whole, 101) if part > 1 else whole} %", _style(part))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _pid(process: Process) -> str:
    return _UNKNOWN if process.pid is None else str(process.pid)


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


def _ago(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else duration(seconds)


def _table(*names: str, head: bool = True, gap: int = 2) -> Table:
    """A table that folds what is too long for its column, and cuts nothing.

    It has no lines: it is to be the same on a terminal that has no characters for them.
    """
    table = Table(
        box=None, show_header=head, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0)
    )
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _indented(renderable: RenderableType) -> Padding:
    return Padding(renderable, (0, 0, 0, 2), expand=False)
