"""The kernels' threads, and Python threads that share a module, under ThreadSanitizer.

``make sanitize`` runs these; their compilation takes 20 and 90 seconds. No other test finds a wait
left out after the threads have packed weights for each other, or memory that is handed to two
threads at once.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["tests/races/races.cpp", "csrc/cpu/isa/generic.cpp"]
SOURCES += ["csrc/cpu/rnn/plan.cpp", "csrc/cpu/rnn/machine.cpp"]
COMPILER = os.environ.get("CXX", "g++")


def output_of(command, **environment):
    """What the command prints; it must end without an error."""
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_no_thread_reads_what_another_has_yet_to_write(tmp_path):
    program = tmp_path / "races"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-Wno-psabi", "-Icsrc", "-pthread"]
    output_of([COMPILER, *flags, *SOURCES, "-o", program])
    output_of([program, "1000"])


def test_python_threads_share_a_module(tmp_path):
    """In a build of its own; torch is not watched, and changes a flag of a shared node unguarded.

    ThreadSanitizer may not find room in an address space that is laid out at random.
    """
    library, instrument = tmp_path / "lib", "-fsanitize=thread -g1"
    build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={library}", "build_ext"]
    build += [f"--build-temp={tmp_path / 'temp'}", f"--build-lib={library}"]
    output_of(build, CFLAGS=instrument, LDFLAGS=instrument, RNNEXT_ISAS="native")
    known = tmp_path / "known"
    known.write_text("race:torch::autograd::Node\n")
    output_of(
        ["setarch", "-R", sys.executable, "tests/races/threads.py"],
        LD_PRELOAD=output_of([COMPILER, "-print-file-name=libtsan.so"]).strip(),
        TSAN_OPTIONS=f"suppressions={known}",
        PYTHONPATH=os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")]),
    )
