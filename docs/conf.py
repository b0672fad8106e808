"""Settings of the documentation site: ``sphinx-build -W -n -b html docs build/docs``.

Nothing is fetched while it is built, and its pages load nothing from elsewhere. What is generated
from the code is made by the extensions in ``_ext``.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import caureid_plugin  # noqa: E402

project = "caureid-plugin"
author = "the caureid-plugin authors"
version = release = caureid_plugin.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
    "generated_pages", "repository_links",
]
exclude_patterns = ["_ext"]
nitpicky = True

# Markdown as code hosts read it, definition lists and fields beside it
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3

# the order of __all__, types where arguments are listed
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Names of other packages, whose documents are not at hand. Names of this package are not here: one
# that does not exist is an error.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|fastreid|PIL|yacs|scipy|sp|sparse|jinja2|faiss|argparse)(\..+)?"),
    # in docstrings that are inherited from torch and FastReID
    ("py:.*", r"Module|ReIDHeads\.forward"),
    ("py:.*", r"(collections|pathlib|os|typing|types|logging|concurrent)(\..+)?"),
]

html_theme = "furo"
html_title = f"caureid-plugin {release}"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
