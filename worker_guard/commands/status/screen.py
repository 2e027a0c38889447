"""The rows as text for a terminal, a pipe or a file. What is too long is folded, never cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Console, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker_guard.commands.status.troubles import kinds, leave, share, words
from worker_guard.commands.status.view import Fleet, WorkerRow, biggest
from worker_guard.status_model import (
    ChildStatus,
    GuardStatus,
    MemoryStatus,
    OwnProcessStatus,
    PastBackfill,
    ProcessStatus,
)
from worker_guard.values.counts import count, some
from worker_guard.values.durations import duration
from worker_guard.values.sizes import size

#: From this width on a task stands beside its child; below it, in a table of its own.
WIDE = 120

#: Of more workers only those in trouble are shown in full.
FULL_WORKERS = 8

#: Of more children only the biggest are shown one by one.
FULL_CHILDREN = 8

#: Of more tasks that expired only the most frequent are named.
FULL_TASKS = 5

#: Tasks that expired longer ago are not shown.
FORGOTTEN_S = 86_400.0

#: In a pipe nothing is folded, unless COLUMNS is set.
UNFOLDED = 10_000

BAR_WIDTH = 12

_UNKNOWN = "?"
_NONE = "-"


def plain(text: str) -> Text:
    """Text that a worker sent: characters that are not printable are escaped."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def full(fleet: Fleet, *, wide: bool, everything: bool) -> RenderResult:
    """The overview, the workers that are shown in full, and the verdict."""
    workers = fleet.worst_first()
    yield overview(workers, wide=wide)
    shown = [worker for worker in workers if worker.troubles]
    if everything or len(workers) <= FULL_WORKERS:
        shown = workers
    for worker in shown:
        yield ""
        yield section(
            worker,
            wide=wide,
            children=None if everything else FULL_CHILDREN,
            everything=everything,
        )
    yield ""
    if rest := len(workers) - len(shown):
        are = "is" if rest == 1 else "are"
        yield f"{count(rest, 'healthy worker')} {are} not shown in full; --all shows them"
    yield verdict(fleet)


def written(console: Console, fleet: Fleet, *, everything: bool = False) -> str:
    """All of it as text for this console, without blanks at the end of a line."""
    with console.capture() as captured:
        for block in full(fleet, wide=console.width >= WIDE, everything=everything):
            console.print(block)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def verdict(fleet: Fleet) -> Text:
    """The state of all workers in one line."""
    line = plain(fleet.verdict())
    line.stylize("bold red" if fleet.trouble else "bold green")
    return line


def overview(workers: Sequence[WorkerRow], *, wide: bool) -> Table:
    """One row for each worker."""
    names = ("worker", "pool", "revoked", "to clear", "memory", "swept", "state")
    table = _table(*names, gap=2 if wide else 1)
    for column in table.columns[2:6]:
        column.justify = "right"
    for worker in workers:
        guard = worker.guard
        cells = [Text(_NONE)] * 5 if guard is None else _overview_cells(guard, worker.old_s)
        # Old figures are grey, so that nobody takes them for the present state.
        style = "dim" if worker.old_s or worker.is_gone else None
        table.add_row(plain(worker.name), *cells, _state(worker), style=style)
    return table


def _overview_cells(guard: GuardStatus, old_s: float) -> list[Text]:
    revoked = guard.revoked
    ids = [_NONE] * 2
    if revoked is not None:
        ids = [_count(revoked.total), str(revoked.clearing) if revoked.clearing else ""]
    concurrency = _UNKNOWN if guard.concurrency is None else str(guard.concurrency)
    cleaned = guard.last_cleanup
    return [
        plain(f"{guard.pool or _UNKNOWN} {concurrency}"),
        *map(Text, ids),
        _worst(guard.memory),
        Text(_NONE if cleaned is None else _ago(cleaned.age_s, old_s)),
    ]


def _worst(memory: MemoryStatus | None) -> Text:
    """The largest share of a limit; if there is no limit, the most that a process uses."""
    if memory is None:
        return Text(_NONE)
    shares = [share(child, memory.child_limit_bytes) for child in memory.children]
    parent = memory.parent or ProcessStatus()
    shares.append(share(parent, memory.parent_limit_bytes))
    shares.append(share(ProcessStatus(used_bytes=memory.total_bytes), memory.total_limit_bytes))
    known = [value for value in shares if value is not None]
    if known:
        return _percent(max(known))
    processes = (parent, *memory.children)
    sizes = [process.used_bytes for process in processes if process.used_bytes is not None]
    return Text(size(max(sizes)) if sizes else _NONE)


def _state(worker: WorkerRow) -> Text:
    if worker.is_gone:
        return Text(f"shut down {duration(worker.old_s)} ago", "dim")
    state = kinds(worker.troubles)
    if worker.guard is not None and worker.guard.dry_run:
        state = f"{state or 'ok'}, dry run"
    return Text(state or "ok", "bold red" if worker.troubles else "green")


def section(
    worker: WorkerRow,
    *,
    wide: bool,
    children: int | None = FULL_CHILDREN,
    everything: bool = False,
) -> Group:
    """All that is known of one worker, with so many of its children; None shows all."""
    guard = worker.guard
    facts = _troubles(worker)
    processes: Iterable[RenderableType] = ()
    if guard is not None:
        for name, fact in _facts(guard, worker.old_s, everything=everything):
            facts.add_row(name, fact)
        if guard.memory is not None:
            processes = _processes(guard, guard.memory, count_of=children, wide=wide)
    return Group(_headline(worker), _indented(facts), *map(_indented, processes))


def brief(workers: Sequence[WorkerRow], *, to_do: bool) -> Table:
    """The troubles of these workers, with or without what to do about them."""
    table = _table("", "", head=False)
    for worker in workers:
        for trouble in worker.troubles:
            text = plain(trouble.text)
            text.stylize("red")
            name = plain(worker.name)
            name.stylize("bold")
            table.add_row(name, text)
            if to_do:
                table.add_row("", plain(f"to do: {trouble.to_do}"))
    return table


def _troubles(worker: WorkerRow) -> Table:
    table = _table("", "", head=False)
    for trouble in worker.troubles:
        text = plain(trouble.text)
        text.stylize("red")
        table.add_row(Text(words(trouble.kind), "bold red"), text)
        table.add_row(Text("to do", "bold"), plain(trouble.to_do))
    return table


def _headline(worker: WorkerRow) -> Text:
    line = plain(worker.name)
    line.stylize("bold")
    guard = worker.guard
    if guard is None:
        return line
    pool = guard.pool or "unknown pool"
    facts = [f"{pool}, concurrency {guard.concurrency or _UNKNOWN}"]
    if guard.active_tasks:
        facts[0] += f", {count(guard.active_tasks, 'task')} running"
    if guard.uptime_s is not None:
        facts.append(f"up {duration(guard.uptime_s)}")
    facts.append(f"guard {guard.version}")
    line.append_text(plain("  " + "  ".join(facts)))
    if guard.dry_run:
        line.append("  DRY RUN", "bold yellow")
    if worker.old_s:
        line.append(f"  as it was {duration(worker.old_s)} ago", "dim")
    return line


def _facts(guard: GuardStatus, old_s: float, *, everything: bool) -> Iterator[tuple[str, Text]]:
    """What happened, what was done and what will be; no line says that nothing did."""
    yield from _expired(guard, old_s)
    if stays := ids(guard):
        yield "revoked", Text(stays)
    yield from _done(guard, old_s)
    if guard.memory is not None and (limits := _limits(guard.memory)):
        yield "limits", Text(limits)
    for name, why in guard.off.items():
        # A part that no setting asks for is not worth a line.
        if everything or not why.endswith((" is None", " are None")):
            yield "off", plain(f"{name}: {why}")


def _expired(guard: GuardStatus, old_s: float) -> Iterator[tuple[str, Text]]:
    """Which tasks expired, how many, when, and why."""
    backfill, revoked = guard.last_backfill, guard.revoked
    if backfill is None or (backfill.age_s or 0) + old_s > FORGOTTEN_S:
        if revoked is not None and revoked.expired:
            they = "it" if revoked.expired == 1 else "they"
            yield "expired", Text(f"{count(revoked.expired, 'task')}, before {they} could run")
        return
    tasks = sorted(backfill.tasks.items(), key=lambda task: -task[1])
    named = some((f"{name} {number}" for name, number in tasks), FULL_TASKS)
    what = f"{count(backfill.expired_tasks, 'task')}, {_ago(backfill.age_s, old_s)} ago"
    yield "expired", plain(f"{what}: {named}" if named else what)
    causes = [(name, number) for name, number in asdict(backfill.causes).items() if number]
    for name, number in causes:
        why = _why(name, backfill)
        yield "because", plain(why if len(causes) == 1 else f"{number}: {why}")


def _why(cause: str, backfill: PastBackfill) -> str:
    """A cause, and what there is to do about it."""
    if cause == "waited_in_queue":
        waited = ""
        if backfill.waited_s_p50 is not None and backfill.waited_s_max is not None:
            half, most = duration(backfill.waited_s_p50), duration(backfill.waited_s_max)
            waited = (
                f" ({half})" if half == most else f" (half of them {half} or more, {most} at most)"
            )
        return (
            f"no child was free in time; they waited{waited} in the queue, or in a worker that had "
            "prefetched them"
        )
    return _CAUSES[cause]


_CAUSES = {
    "held_until_eta": (
        "a countdown, an ETA or a retry held them until after they expired: "
        "give them a longer expires"
    ),
    "born_expired": "they had expired before they were sent: fix the sender",
    "clock_differs": (
        "clocks differ: they can't have waited that long, since this worker took messages all "
        "the time; set the clock of the sender or of this worker"
    ),
}


def ids(guard: GuardStatus) -> str:
    """What becomes of the revoked ids."""
    revoked = guard.revoked
    if revoked is None:
        return ""
    known = [leave(guard)]
    if revoked.clearing is None and (expired := (revoked.expired or 0) + (revoked.confirmed or 0)):
        known.append(f"{count(expired, 'id')} expired")
    if revoked.operator:
        known.append(
            f"{count(revoked.operator, 'id')} that an operator revoked {_stay(revoked.operator)}"
        )
    if revoked.unproven:
        known.append(
            f"{count(revoked.unproven, 'unconfirmed id')} {_stay(revoked.unproven)}: an operator "
            "may have revoked " + ("it" if revoked.unproven == 1 else "them")
        )
    if revoked.stamps:
        known.append(f"{count(revoked.stamps, 'stamped header')} revoked")
    return "; ".join(filter(None, known))


def _stay(number: int) -> str:
    return "stays" if number == 1 else "stay"


def _done(guard: GuardStatus, old_s: float) -> Iterator[tuple[str, Text]]:
    """What the guard did, if it did something."""
    would = "would be " if guard.dry_run else ""
    last = guard.last_clearing
    if last is not None:
        what = f"{count(last.revoked_tasks_cleared, 'id')}, {_ago(last.age_s, old_s)} ago"
        total = guard.totals.revoked_tasks_cleared
        more = f"; {total} since the start" if total > (last.revoked_tasks_cleared or 0) else ""
        yield f"{would}cleared", Text(f"{what}{more}")
    results = guard.last_results_cleanup
    if results is not None:
        facts = []
        if results.expired_results_deleted:
            facts.append(f"{count(results.expired_results_deleted, 'old result')} {would}deleted")
        if results.task_states_cleaned:
            facts.append(f"{count(results.task_states_cleaned, 'key')} {would}given a TTL")
        what = ", ".join(facts) or "nothing was old enough"
        yield "results", Text(f"{what}, {_ago(results.age_s, old_s)} ago")
    broker = guard.broker
    if broker is not None and (broker.replies_deleted or broker.replies_unread):
        deleted = count(broker.replies_deleted, "orphaned reply", "orphaned replies")
        unread = f", {broker.replies_unread} not read so far" if broker.replies_unread else ""
        what = f"{deleted} {would}deleted{unread}"
        yield "broker", Text(f"{what}, {_ago(broker.looked_s, old_s)} ago")
    if guard.stall is not None and (reconnects := guard.stall.reconnects):
        times = count(reconnects, "time")
        yield f"{would}reconnected", Text(f"{times} in the last hour: the consumer had stalled")
    if killed := guard.totals.children_killed:
        yield "killed", Text(f"{count(killed, 'child', 'children')} since the start")
    if recycled := guard.totals.children_recycled:
        yield "replaced", Text(f"{count(recycled, 'child', 'children')} since the start")


def _limits(memory: MemoryStatus) -> str:
    limits = (
        ("for each child", memory.child_limit_bytes),
        ("for the main process", memory.parent_limit_bytes),
        ("for all processes together", memory.total_limit_bytes),
    )
    return ", ".join(f"{size(limit, limit)} {whose}" for whose, limit in limits if limit)


def _processes(
    guard: GuardStatus, memory: MemoryStatus, *, count_of: int | None, wide: bool
) -> Iterable[RenderableType]:
    """The main process, the biggest children, what these run, and how many more there are."""
    children = biggest(memory.children, count_of)
    parent = memory.parent or ProcessStatus()
    # No process grows, as a rule: then there is no column that says when.
    grows = any(process.limit_in_s is not None for process in (parent, *children))
    numbers = ("memory", "of limit", "", *(["full"] if grows else []), "age", "recycled")
    table = _table("process", *numbers, *(["runs"] if wide else []))
    for index in (1, *range(3, len(numbers) + 1)):
        table.columns[index].justify = "right"
    main = _process("main", parent, memory.parent_limit_bytes, grows=grows)
    table.add_row(*main, _ago(guard.uptime_s))
    for child in children:
        label = "leaving" if child.leaving else "child"
        cells = _process(label, child, memory.child_limit_bytes, grows=grows)
        recycled = str(child.recycles) if child.recycles else ""
        table.add_row(*cells, _ago(child.age_s), recycled, *([_task(child)] if wide else []))
        for row in _own_processes(child, memory.child_limit_bytes):
            table.add_row(*row)
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
        rest = count(len(others), "more child", "more children")
        most = size(top, memory.child_limit_bytes)
        yield Text(f"and {rest}: {most} at most, {busy} busy")


def _process(
    label: str, process: ProcessStatus, limit_bytes: int | None, *, grows: bool
) -> list[RenderableType]:
    part, in_s = share(process, limit_bytes), process.limit_in_s
    cells = [
        f"{label} {_pid(process)}",
        _used(process, limit_bytes),
        _bar(part) if part is not None else "" if limit_bytes else "no limit",
        "" if part is None else _percent(part),
    ]
    return [*cells, *(["" if in_s is None else f"in {duration(in_s)}"] if grows else [])]


def _own_processes(
    child: ChildStatus, limit_bytes: int | None
) -> Iterator[tuple[RenderableType, ...]]:
    """The processes that a child started: the biggest, and how many more there are."""
    for process in child.own_processes:
        name = plain(f"  {_pid(process)} {process.command or _UNKNOWN}")
        yield name, _used(process, limit_bytes)
    if (rest := (child.processes or 1) - 1 - len(child.own_processes)) > 0:
        yield (f"  and {rest} more" if child.own_processes else f"  and {rest} of its own",)


def _used(process: ProcessStatus | OwnProcessStatus, limit_bytes: int | None) -> str:
    if process.used_bytes is None:
        return "unread"
    return f"{size(process.used_bytes, limit_bytes)} {(process.metric or '').upper()}"


def _bar(part: float) -> ProgressBar:
    style = _style(part)
    return ProgressBar(
        total=1.0,
        completed=min(part, 1.0),
        width=BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _task(child: ChildStatus) -> Text:
    task = child.task
    if task is None:
        return Text(_NONE)
    since = "" if task.running_s is None else f" for {duration(task.running_s)}"
    return plain(f"{task.task_name or _UNKNOWN} {task.task_id}{since}")


def _style(part: float) -> str:
    return "red" if part > 1 else "yellow" if part > 0.8 else "green"


def _percent(part: float) -> Text:
    # Rounded down, so that only a process at its limit shows 100 %, and only one over it 101 %.
    whole = int(part * 100)
    return Text(f"{max(whole, 101) if part > 1 else whole} %", _style(part))


def _pid(process: ProcessStatus | OwnProcessStatus) -> str:
    return _UNKNOWN if process.pid is None else str(process.pid)


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


def _ago(seconds: float | None, old_s: float = 0.0) -> str:
    return _UNKNOWN if seconds is None else duration(seconds + old_s)


def _table(*names: str, head: bool = True, gap: int = 2) -> Table:
    """A table that folds what is too long for its column.

    It has no lines, since some terminals have no characters for them.
    """
    table = Table(
        box=None, show_header=head, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0)
    )
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _indented(renderable: RenderableType) -> Padding:
    return Padding(renderable, (0, 0, 0, 2), expand=False)
