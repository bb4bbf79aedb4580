"""The Python of README.md runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_python_blocks_run_in_order():
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, README.name, "exec"), namespace)
    assert namespace["h_n"].shape == (2, 20, 200)


@pytest.mark.parametrize("name", re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")))
def test_linked_files_exist(name):
    assert (README.parent / name).is_file()
