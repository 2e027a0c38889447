"""The catalogue of rules; docs/audit.md has a section of each, by its id."""

from __future__ import annotations

from worker_guard.audit import acks, delivery, expiry, guard, malformed, memory, results, stored
from worker_guard.audit.finding import Check, rule_id

RULES: tuple[Check, ...] = (
    malformed.entry_not_loadable,
    malformed.setting_not_readable,
    expiry.expires_shorter_than_interval,
    expiry.runs_pile_up,
    expiry.expires_under_a_day,
    expiry.expires_ignored_by_scheduler,
    expiry.options_ignored_by_scheduler,
    expiry.interval_rounded_down,
    expiry.expires_absolute,
    expiry.expires_before_start,
    expiry.expires_not_a_time,
    expiry.expires_naive,
    expiry.fixed_task_id,
    stored.stored_entries_not_run,
    acks.acks_late_without_reject,
    acks.reject_false_does_not_requeue,
    acks.reject_without_acks_late,
    memory.memory_limit_below_newborn,
    memory.memory_limit_unit,
    memory.memory_limit_beside_guard,
    results.result_expires_never,
    delivery.visibility_timeout_short,
    delivery.prefetch_outlasts_expires,
    guard.statedb_without_guard,
    guard.guard_not_installed,
    guard.guard_settings_rejected,
    guard.guard_changes_nothing,
    guard.guard_setting_without_effect,
)

IDS = tuple(rule_id(check) for check in RULES)
