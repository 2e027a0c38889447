"""How Sphinx builds the documentation: ``make docs``."""

from worker_guard import __version__

project = "worker_guard"
author = "the worker_guard maintainers"
project_copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True

myst_heading_anchors = 3

html_theme = "furo"
html_title = f"worker_guard {release}"
