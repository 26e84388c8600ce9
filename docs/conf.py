"""Sphinx's configuration: `make docs` builds these pages, and fails on a broken link or a key without explanation."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import generate  # noqa: E402

import eft_local  # noqa: E402

project = "eft-local"
author = "the eft-local authors"
project_copyright = "2026, the eft-local authors"
version = release = eft_local.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"eft-local {version}"
html_copy_source = False
html_show_sourcelink = False

default_role = "code"  # docstrings have one backtick on each side, as Markdown has
smartquotes = False  # quotes in tables are TOML's
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# A name of ours that a signature mentions and no page explains is a broken link; other projects' names are no links.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!eft_local).*")]

setup = generate.setup
