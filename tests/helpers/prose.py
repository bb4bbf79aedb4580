"""The documents, and the Python in them."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def names_of(page: str) -> dict[str, Any]:
    """The names that the Python blocks of a page leave, run in order."""
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text(ROOT / page), re.DOTALL):
        exec(compile(block, page, "exec"), namespace)
    return namespace
