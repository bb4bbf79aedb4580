"""The documentation site: ``make docs``.

Its pages are those that read on GitHub as they are, README.md, docs/*.md and the notebook; the
source folder is the repository's, so that links between them hold in both places. docs/README.md
gives the order: its headings and links are the site's navigation.
"""

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import rnnext

ROOT = Path(__file__).parents[1]

project = "rnnext"
author = "the rnnext authors"
release = rnnext.__version__.partition("+")[0]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "examples/*.ipynb"]
exclude_patterns = [".*", "build", "dist", "out", "results"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # MathJax within the site: nothing is loaded from elsewhere
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # #names of headings, as GitHub makes them
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
os.environ["OMP_NUM_THREADS"] = "1"  # for the notebook: calls this small wait for busy threads

highlight_language = "none"  # of blocks that name no language
autodoc_typehints = "none"  # the docstrings say more
autodoc_mock_imports = ["onnxscript", "tensordict", "torchrl"]
napoleon_use_ivar = True
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
pygments_dark_style = "github-dark"
html_title = f"rnnext {release}"


def navigation() -> str:
    """Table of contents from the headings and links of docs/README.md."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    trees = ["```{toctree}\n:hidden:\n\nOverview <self>\n```\n"]
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        pages = [
            (ROOT / "docs" / link).resolve().relative_to(ROOT)
            for link in re.findall(r"^\| \[[^]]*\]\(([^)#]+)\)", section, re.MULTILINE)
        ]
        lines = "\n".join(f"/{page.with_suffix('')}" for page in pages if page.stem != root_doc)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n")
    return "\n" + "\n".join(trees)


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == root_doc:
        source[0] += navigation()
    elif docname == "docs/README":  # a page, but not in the navigation that is made from it
        source[0] = f"---\norphan: true\n---\n{source[0]}"


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """The first page also under the name that servers look for."""
    if exception is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("build-finished", add_index)
