"""The list of planted faults follows the sources: each of its excerpts occurs once."""

from tools.faults.__main__ import HERE, ROOT, read


def test_every_fault_has_its_place():
    for fault in read(HERE / "list.txt"):
        fault.place((ROOT / fault.file).read_text())
