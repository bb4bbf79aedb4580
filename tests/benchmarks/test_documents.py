import benchmarks.__main__ as main
from benchmarks import compared, store, tables
from helpers.common import assert_refused
from helpers.runs import run_of

ROOT = main.ROOT
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
DOCUMENT = """# Title
<!-- benchmarks: readme -->
old
<!-- end -->
Between.
<!-- benchmarks: summary -->
<!-- end -->
<!-- benchmarks: calls -->
<!-- end -->
<!-- benchmarks: headline rnn -->
<!-- end -->
After.
"""


def test_a_published_run_is_kept_and_written_into_the_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(store, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(main, "ROOT", tmp_path)
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    for document in (readme, page):
        document.write_text(DOCUMENT)
    run_of("latest", 2.0).save()
    assert main.main(["publish"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    text = readme.read_text()
    assert text == page.read_text()
    assert text.startswith("# Title\n<!-- benchmarks: readme -->\n\n|")
    (steps,) = (line for line in text.split("\n") if line.startswith("|one step of a stream"))
    assert "|5.0 (5.0-5.0)|" in steps
    assert "\nold\n" not in text
    assert "|rnn-T128-B64-I1024-H1024-train|2 ms|" in text
    assert "Between." in text
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert (tmp_path / "docs" / "figures" / "speedup.png").stat().st_size > 1000
    (kept,) = store.kept()
    assert kept.label.startswith("cpu-")
    assert kept.rows == store.load("latest").rows
    assert tables.write(kept, [readme]) == []
    none = "<!-- benchmarks: nonsense -->\n<!-- end -->"
    assert_refused(tables.replaced, ValueError, "no table is called 'nonsense'", none, kept)
    del kept.rows["demo-T100-B20-I256-H256-train"]
    assert_refused(tables.replaced, ValueError, "no times of demo", DOCUMENT, kept)


def test_the_tables_in_the_documents_are_those_of_the_last_kept_run():
    last, written = store.kept()[-1], set()
    for page in PAGES:
        for block in tables.BLOCK.finditer(page.read_text()):
            if block[2] in tables.TABLES:
                assert tables.replaced(block[0], last) == block[0], f"{page.name}: {block[2]}"
                written.add(block[2])
    assert written == tables.TABLES.keys()


def test_the_tables_of_comparisons_are_those_of_the_kept_ones(tmp_path, monkeypatch):
    """Published again, they change no page."""
    monkeypatch.setattr(store, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(main, "ROOT", tmp_path)
    assert main.main(["publish", "--label", "compiled"]) == 2  # none was stored
    (tmp_path / "docs").mkdir()
    pages = [page for page in PAGES if tables.BLOCK.search(page.read_text())]
    copies = [tmp_path / page.relative_to(ROOT) for page in pages]
    for page, copy in zip(pages, copies, strict=True):
        copy.write_text(page.read_text())
    assert_refused(compared.suite("edges").run, ValueError, "no row of edges matches 'x'", ["x"])
    assert_refused(store.load, ValueError, "'features' is a suite's result", "features")
    kept = {name: compared.load(name, store.KEPT) for name in compared.NAMES}
    monkeypatch.setattr(store, "KEPT", tmp_path / "kept")
    for name, run in kept.items():
        run.save()
        assert main.main(["publish", "--label", name]) == 0
        assert compared.load(name, tmp_path / "kept") == run
    assert [copy.read_text() for copy in copies] == [page.read_text() for page in pages]
    suite = compared.Suite("own", lambda: (compared.Row(name, dict) for name in "ab"), {})
    compared.Comparison(suite.name, {"cpu": "another"}, {"c": {}}).save()
    assert [suite.run([name]) for name in "ab"] == [0, 0]
    assert [*compared.load(suite.name).rows] == ["a", "b"]  # without what another CPU took
