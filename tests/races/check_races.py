"""The threads of kernels, and Python threads that share a module, under ThreadSanitizer.

``make sanitize`` runs this; to compile takes a minute. No other test finds a wait left out after
the threads have packed weights for each other, or memory that is handed to two threads at once.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT, COMPILER = Path(__file__).resolve().parents[2], os.environ.get("CXX", "g++")
# torch is not watched, and changes a flag of a node that two graphs share unguarded.
KNOWN = "race:rnnext::node_of\n"


def run(*command, **environment):
    """The command, which must end without an error; pytest shows what it prints."""
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)


def test_no_thread_reads_what_another_has_yet_to_write(tmp_path):
    """In a build of its own, in which every access of the kernels is watched: "generic".

    ThreadSanitizer may not find room in an address space that is laid out at random.
    """
    library, pool, known = (tmp_path / name for name in ("lib", "pool.so", "known"))
    watch = "-fsanitize=thread"
    run(COMPILER, watch, "-shared", "-fPIC", "tests/races/pool.cpp", "-o", pool)
    build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={library}", "build_ext"]
    build += [f"--build-temp={tmp_path / 'temp'}", f"--build-lib={library}"]
    run(*build, CFLAGS=watch, LDFLAGS=watch, RNNEXT_ISAS="generic")
    known.write_text(KNOWN)
    watcher = subprocess.check_output([COMPILER, "-print-file-name=libtsan.so"], text=True).strip()
    run(
        *("setarch", "-R", sys.executable, "tests/races/calls.py"),
        LD_PRELOAD=f"{watcher} {pool}",
        TSAN_OPTIONS=f"suppressions={known} halt_on_error=1",
        RNNEXT_CPU_TEAM="whole",
        PYTHONPATH=os.pathsep.join([str(library), "tests", os.environ.get("PYTHONPATH", "")]),
    )
