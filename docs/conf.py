"""The site: Sphinx, furo and MyST. `make docs` builds it, offline, with every warning an error."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import iwbounds  # noqa: E402 (from this checkout, which the lines above put first)

project = "iwbounds"
author = "the iwbounds authors"
copyright = "2026, the iwbounds authors"
release = version = iwbounds.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    # Ours, in _ext: formulas as MathML, pages made from the package and from examples/, links that leave docs/.
    "mathml",
    "api_pages",
    "gallery",
    "references",
    "repository_links",
]

exclude_patterns = ["_build", "_ext", "_static"]
# A reference that leads nowhere is a mistake, as any other warning (see _ext/references.py for what has no page).
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"iwbounds {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/iwbounds/iwbounds/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ee", "color-brand-content": "#7cc4ee"},
}
