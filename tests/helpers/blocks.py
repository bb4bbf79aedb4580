"""The Python in the documents, run by sybil."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import SkipTest

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def run_blocks(page: Path) -> dict[str, Any]:
    """The names that the Python blocks of a page leave, run in order.

    ``<!-- skip: next if(condition, reason="...") -->`` before a block leaves it out.
    """
    document = Document.parse(str(page), PythonCodeBlockParser(), SkipParser())
    for example in document.examples():
        with suppress(SkipTest):
            example.evaluate()
    return document.namespace
