"""How Sphinx makes the pages of ``docs/``: see ``make docs``."""

from typing import Any

from gradient_lars import __version__
from gradient_lars.presets import Preset

project = "gradient-lars"
author = "The gradient-lars authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# In docstrings single backticks name an argument or an object: a link where there is such an
# object, else code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80

# Names of this package that are not found are errors. Other packages' are not looked up: a build
# needs no network.
nitpicky = True
_PACKAGES = "torch|jax|optax|numpy|collections|typing|types|re|pathlib|lightning|chainer"
_PACKAGES += "|transformers"
_TYPES = "Any|Callable|Iterable|Iterator|Mapping|Sequence|Literal|Tensor|Self|Predicate|nn.Module"
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # the default role: most of them are arguments
    ("py:.*", rf"({_PACKAGES})\..*"),
    ("py:.*", _TYPES),
    (
        "py:.*",
        r".*\._attachment\..*",
    ),  # a protocol: its one method is described with the argument
]

html_theme = "furo"
html_title = "gradient-lars"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
highlight_language = "none"  # formulas; examples are known by their >>>
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _describe_preset(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Put what a preset says of itself in place of its class's docstring."""
    if isinstance(value, Preset):
        settings = ", ".join(f"``{setting}={value[setting]!r}``" for setting in value)
        lr, source = f"Learning rate: {value.lr}.", f"Source: {value.source}."
        lines[:] = [value.about, "", lr, "", source, "", settings]


def setup(app: Any) -> None:
    """Connect the above."""
    app.connect("autodoc-process-docstring", _describe_preset)
