"""The list of planted faults follows the sources: each of its excerpts occurs once."""

from tools.faults.__main__ import HERE, ROOT, planted, read


def test_every_fault_has_its_place():
    for fault in read(HERE / "list.txt"):
        source = planted((ROOT / fault.file).read_text(), [fault])
        if fault.file.endswith(".py"):
            compile(source, fault.file, "exec")
