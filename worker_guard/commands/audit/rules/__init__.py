"""The catalogue of rules; docs/audit.md has a section for each."""

from __future__ import annotations

from worker_guard.commands.audit.finding import Check, rule_id
from worker_guard.commands.audit.rules import (
    acks,
    delivery,
    expiry,
    guard_settings,
    malformed,
    memory_limits,
    result_backend,
    stored_entries,
)

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
    stored_entries.stored_entries_not_run,
    acks.acks_late_without_reject,
    acks.reject_false_does_not_requeue,
    acks.reject_without_acks_late,
    memory_limits.memory_limit_below_newborn,
    memory_limits.memory_limit_unit,
    memory_limits.memory_limit_beside_guard,
    result_backend.result_expires_never,
    delivery.visibility_timeout_short,
    delivery.prefetch_outlasts_expires,
    guard_settings.statedb_without_guard,
    guard_settings.guard_not_installed,
    guard_settings.guard_settings_rejected,
    guard_settings.guard_changes_nothing,
    guard_settings.guard_setting_without_effect,
)

IDS = tuple(rule_id(check) for check in RULES)
