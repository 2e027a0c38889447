"""A scheduler of a Django project's own, derived from django-celery-beat's."""

from __future__ import annotations

from django_celery_beat.schedulers import DatabaseScheduler


class Own(DatabaseScheduler):
    """As projects have it that keep a schedule for each tenant."""
