"""The documentation site: `make docs` builds it into build/docs, and any warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import deepcait

sys.path.insert(0, str(Path(__file__).parent))
from plain import as_rst  # noqa: E402

project = "deepcait"
author = "The deepcait developers"
copyright = "the deepcait developers, Apache-2.0"  # the name is Sphinx's
version = release = deepcait.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc"]
html_theme = "furo"
html_title = f"deepcait {version}"
html_copy_source = False
highlight_language = "none"

# Markdown as the repository shows it: links between headings, images with a width.
myst_enable_extensions = ["html_image", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# A name is described where it is defined, not again where it is imported.
autodoc_default_options = {"members": True, "undoc-members": False, "ignore-module-all": True}
suppress_warnings = ["ref.python"]  # `set` in a signature is Python's, whatever fields are called so
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# One page per module, written again by every build into docs/api/ (not kept in git).
apidoc_modules = [
    {
        "path": "../deepcait",
        "destination": "api",
        "exclude_patterns": ["**/cli/**", "**/__main__.py"],
        "separate_modules": True,
        "module_first": True,
        "max_depth": 2,
    }
]
# dev/ holds measurements and negative results, for those who change the code.
exclude_patterns = ["api/modules.rst", "dev", "results/*.py"]


def setup(app) -> None:
    """Have docstrings read as the plain text that they are, before napoleon finds their sections."""
    app.connect("autodoc-process-docstring", _plain_text, priority=400)


def _plain_text(app, what, name, obj, options, lines) -> None:
    lines[:] = as_rst(lines)
