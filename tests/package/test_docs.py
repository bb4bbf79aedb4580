"""The prose: the Python in it runs, links lead somewhere, lines end at column 100."""

import re
from pathlib import Path

import pytest
import torch

from helpers.prose import ROOT, names_of, text

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_the_python_of_the_readme_runs():
    assert names_of("README.md")["h_n"].shape == (2, 20, 200)


def test_the_error_that_numerics_reports_is_measured_as_it_says(capsys):
    names_of("docs/numerics.md")
    name, rms, largest = capsys.readouterr().out.split("\n")[0].split()
    assert name == "rnnext"
    assert float(rms) < 2e-7
    assert float(largest) < 2e-6


def test_the_agent_of_streaming_learns_and_its_text_is_what_it_read(capsys):
    torch.manual_seed(0)
    names = names_of("docs/streaming.md")
    assert "bias_hh_l0 has changed" in capsys.readouterr().out
    assert sum(names["history"][-5:]) / 5 > 0.5
    assert names["written"] in names["text"]
    assert names["sampled"].shape == (60, 1)


@pytest.mark.parametrize("page", ["leaky", "episodes", "tokens", "constraints"])
def test_the_python_of_the_guides_runs(page):
    """And what it asserts is so."""
    assert "rnnext" in names_of(f"docs/{page}.md")


@pytest.mark.filterwarnings("ignore")  # of torch.jit and of the ONNX exporter
def test_the_python_of_deploy_runs(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript", reason="in the extra `test`")
    monkeypatch.chdir(tmp_path)
    files = {"weights.pt", "rnn.pt", "stepper.pt", "model.pt", "model.pt2", "model.onnx"}
    assert "program" in names_of("docs/deploy.md")
    assert files <= {file.name for file in tmp_path.iterdir()}


def anchors(page: Path) -> set[str]:
    """The names under which GitHub links to the page's headings."""
    titles = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text(page))
    for name, anchor in links:
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_end_at_column_100(page):
    """But tables, and lines that a URL makes long."""
    lines = text(page).split("\n")
    assert [x for x in lines if len(x) > 100 and not re.match(r"\||.*https?://", x)] == []


def test_every_figure_is_discussed_somewhere():
    prose = "".join(text(page) for page in PAGES)
    for figure in (ROOT / "docs" / "figures").iterdir():
        assert f"figures/{figure.name})" in prose, figure.name


def test_every_page_is_in_the_index():
    index = text(ROOT / "docs" / "README.md")
    for page in PAGES:
        assert page.name in index or page.name in ("README.md", "CHANGELOG.md")
