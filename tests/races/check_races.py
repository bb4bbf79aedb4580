"""The kernels' threads under ThreadSanitizer: no data race in 1,000 random calls of a team.

``make sanitize`` runs it; its compilation takes 20 seconds. It is the only test that finds a wait
left out after the threads have packed weights for each other.
"""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["tests/races/races.cpp", "csrc/cpu/isa/generic.cpp"]
SOURCES += ["csrc/cpu/rnn/plan.cpp", "csrc/cpu/rnn/machine.cpp"]


def test_no_thread_reads_what_another_has_yet_to_write(tmp_path):
    program = tmp_path / "races"
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-Wno-psabi", "-Icsrc", "-pthread"]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *flags, *SOURCES, "-o", program], cwd=ROOT, check=True)
    run = subprocess.run([program, "1000"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
