"""How the site is built: `make docs`. Nothing here, and nothing in a page, asks the network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from oneway import __version__

project = "oneway"
author = "The oneway developers"
project_copyright = author
release = version = __version__

extensions = [
    "accessible",
    "api_links",
    "mathml",
    "myst_parser",
    "root_pages",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_ext"]
nitpicky = True
smartquotes_action = "qe"  # two dashes begin an option

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_allow_digits = False  # $1 is a shell's, and 5$ a price
myst_dmath_allow_space = False

autodoc_default_options = {"members": True, "special-members": "__call__", "no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autoclass_content = "both"
maximum_signature_line_length = 80
napoleon_custom_sections = ["Source"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # a signature says them, with links
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "oneway"
html_static_path = ["_static"]
html_css_files = ["oneway.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "footer_icons": [],
    "light_css_variables": {"color-brand-primary": "#0b5d66", "color-brand-content": "#0b5d66"},
    "dark_css_variables": {"color-brand-primary": "#6cc7cf", "color-brand-content": "#6cc7cf"},
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

copybutton_exclude = ".linenos, .gp, .go"
