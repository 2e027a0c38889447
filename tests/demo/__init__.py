"""The incident, replayed with real workers: ``make demo``."""
