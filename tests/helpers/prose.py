"""The documents."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")
