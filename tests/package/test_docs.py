"""The prose: the Python in it runs, lines end at column 100. (`make docs` follows its links.)"""

import importlib.util
import re
from pathlib import Path

import pytest

import rnnext
from helpers.blocks import run_blocks
from helpers.common import ROOT


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def numerics(names, output):
    name, _, rms, largest = output.split("\n")[1].split()
    assert name == "rnnext"
    assert float(rms) < 2e-7
    assert float(largest) < 2e-6


def ppo(names, output):
    """Its ratios of 1 say something: the last rollout begins within episodes, and others follow.

    CartPole's first observations, and no others that follow an end, are within 0.05 of zero.
    """
    assert names["seen"][names["reset"]].abs().max() <= 0.05
    assert not names["reset"][0].all()
    assert names["h0"].abs().max() > 0.1
    assert names["reset"][1:].any()
    assert not names["acts"].all()


def streaming(names, output):
    assert "bias_hh_l0 has changed" in output
    assert names["written"] in names["text"]
    assert names["sampled"].shape == (60, 1)


CHECKS = {"numerics.md": numerics, "ppo.md": ppo, "streaming.md": streaming}
WITH_PYTHON = [page for page in PAGES if "```python" in text(page)]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore")  # of torch.jit and of the ONNX exporter
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path, capsys):
    if page.name == "deploy.md":
        pytest.importorskip("onnxscript", reason="in the extra `test`")
    monkeypatch.chdir(tmp_path)  # some write files
    names = run_blocks(page)
    assert "rnnext" in names
    if page.name in CHECKS:
        CHECKS[page.name](names, capsys.readouterr().out)


def test_commands_exist():
    """Targets of make, modules of this project that are run, and files."""
    targets = re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE)
    for page in PAGES:
        code = "\n".join(re.findall(r"```\n.*?```|`[^`\n]+`", text(page), re.DOTALL))
        code += text(ROOT / "docs" / "figures" / "architecture.svg")
        for target in re.findall(r"^`?make ([a-z][a-z-]*)", code, re.MULTILINE):
            assert target in targets, f"{page.name}: {target}"
        for module in re.findall(r"python -m ((?:rnnext|benchmarks|tools)[\w.]*)", code):
            assert importlib.util.find_spec(module), f"{page.name}: {module}"
        for path in re.findall(r"\b(?:tests|csrc)/[\w./]+", code):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
    assert "| `make test` |" not in text(ROOT / "docs" / "trust.md")  # it names the tests


def test_the_api_page_has_every_public_name():
    page = text(ROOT / "docs" / "api.md")
    listed = re.findall(r"auto(?:class|function|module):: rnnext\.(\w+)", page)
    assert set(listed) == {*rnnext.__all__, "onnx", "torchrl"}


def test_lines_end_at_column_100():
    """But tables, and lines that a URL makes long."""
    long = [(p.name, x) for p in PAGES for x in text(p).split("\n") if len(x) > 100]
    assert [(name, x) for name, x in long if not re.match(r"\||.*https?://", x)] == []
