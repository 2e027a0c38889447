"""What the guard costs, measured as ratios within one run: ``make bench``."""
