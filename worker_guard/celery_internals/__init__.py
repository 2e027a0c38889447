"""The one place that touches what Celery, kombu and billiard do not document.

The first line of each module says what it touches. "Relies on" lists the undocumented names, in
the module's docstring or in the function's; "read in" gives the releases in which they were read.
The tests run on Celery 5.3.6, 5.4.0, 5.5.3, 5.6.3 and 5.7.0. If a release lacks a name, the
function raises :exc:`MissingInternalError`; the part that needs it stays off and says so.
"""

from worker_guard.celery_internals.blocked_reads import check_platform, end_read, sample_read
from worker_guard.celery_internals.children import (
    PoolChild,
    PoolChildren,
    RunningTask,
)
from worker_guard.celery_internals.configuration import (
    is_given,
    is_set_on_app,
    names_in_source,
)
from worker_guard.celery_internals.consumer import TaskConsumer
from worker_guard.celery_internals.consumer_kinds import task_consumer
from worker_guard.celery_internals.deaths import PoolDeaths
from worker_guard.celery_internals.hooks import (
    Hook,
    MissingInternalError,
)
from worker_guard.celery_internals.host import (
    allow_recycling,
    held_task_ids,
    keep_replacements_alive,
    outlive_the_forking_thread,
    pool_name,
    shut_down_warmly,
    watch_accepted,
)
from worker_guard.celery_internals.loop import (
    count_received,
    expand_node,
    is_stopping,
    watch_full_pool,
    watch_turns,
)
from worker_guard.celery_internals.mailbox import Mailbox, QuestionEndedError
from worker_guard.celery_internals.queues import EmptyQueues
from worker_guard.celery_internals.redis_broker import RedisBroker, redis_broker
from worker_guard.celery_internals.revoked_hooks import has_just_arrived, watch_revoked_set
from worker_guard.celery_internals.revoked_set import (
    STATEDB_KEY,
    Discarding,
    HeldRoom,
    ReplacedSetError,
    count_stamps,
    held_ids,
    ids_of_statedb,
    is_replaced,
    revoke_stamp,
    revoked_stamps,
    statedb,
    successor,
    the_revoked_set,
)
from worker_guard.celery_internals.servers import (
    REDIS_TIMEOUT_S,
    is_key_value,
    is_redis,
    key_prefix,
    naive_date_ahead_s,
    redis_client,
    result_key_prefixes,
    result_ttl_s,
    result_ttls_s,
    results_client,
    waiting_messages,
)
from worker_guard.celery_internals.starts import PoolStarts

__all__ = [
    "REDIS_TIMEOUT_S",
    "STATEDB_KEY",
    "Discarding",
    "EmptyQueues",
    "HeldRoom",
    "Hook",
    "Mailbox",
    "MissingInternalError",
    "PoolChild",
    "PoolChildren",
    "PoolDeaths",
    "PoolStarts",
    "QuestionEndedError",
    "RedisBroker",
    "ReplacedSetError",
    "RunningTask",
    "TaskConsumer",
    "allow_recycling",
    "check_platform",
    "count_received",
    "count_stamps",
    "end_read",
    "expand_node",
    "has_just_arrived",
    "held_ids",
    "held_task_ids",
    "ids_of_statedb",
    "is_given",
    "is_key_value",
    "is_redis",
    "is_replaced",
    "is_set_on_app",
    "is_stopping",
    "keep_replacements_alive",
    "key_prefix",
    "naive_date_ahead_s",
    "names_in_source",
    "outlive_the_forking_thread",
    "pool_name",
    "redis_broker",
    "redis_client",
    "result_key_prefixes",
    "result_ttl_s",
    "result_ttls_s",
    "results_client",
    "revoke_stamp",
    "revoked_stamps",
    "sample_read",
    "shut_down_warmly",
    "statedb",
    "successor",
    "task_consumer",
    "the_revoked_set",
    "waiting_messages",
    "watch_accepted",
    "watch_full_pool",
    "watch_revoked_set",
    "watch_turns",
]
