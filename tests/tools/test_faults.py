"""The list of planted faults follows the sources: each excerpt occurs once, and Python compiles."""

from tools.faults.__main__ import HERE, ROOT, planted, read


def test_every_fault_has_its_place():
    for fault in read(HERE / "list.txt"):
        source = planted((ROOT / fault.file).read_text(), [fault])
        if fault.file.endswith(".py"):
            compile(source, fault.file, "exec")
