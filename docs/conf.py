# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the site: ``make docs``. It needs no network, and neither does what it builds."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Airflow is imported for the API's pages; nothing of the user's own Airflow may be touched.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="luma-docs-airflow-"))
sys.path.insert(0, str(Path(__file__).parent.parent))

from airflow_provider_luma import __version__

project = "airflow-provider-luma"
author = "airflow-provider-luma contributors"
copyright = "airflow-provider-luma contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
myst_heading_anchors = 3

autoclass_content = "both"  # a class describes the parameters of its constructor
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
# Names of others (Python's, Airflow's, requests') have no pages here. Our own must resolve.
nitpick_ignore_regex = [(r"py:.*", r"(?!airflow_provider_luma\b)(?!Luma)(?!Video).*")]

html_theme = "pydata_sphinx_theme"
html_context = {"default_mode": "auto"}
html_title = f"airflow-provider-luma {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"**": ["pages.html"]}
html_theme_options = {
    "logo": {"text": "airflow-provider-luma"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}


def describe_fields(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Add the fields of a pydantic model to its docstring."""
    if what == "class":
        fields = getattr(documented, "model_fields", {})
        lines += [f":param {field}: {info.description}" for field, info in fields.items()]


def setup(app: Any) -> None:
    """Extend Sphinx."""
    app.connect("autodoc-process-docstring", describe_fields)
