# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: ``make docs``. It needs no network, and neither do the pages."""

import os
import tempfile

# Importing Airflow, for the docstrings, makes a folder for its settings.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="luma-docs-")

from airflow_provider_luma import __version__

project = "airflow-provider-luma"
copyright = "the authors of airflow-provider-luma"  # noqa: A001
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"Luma for Airflow {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "attrs_block"]

autodoc_member_order = "bysource"
maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True
