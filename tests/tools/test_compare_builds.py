"""The comparison of two builds finds what differs, to the bit, and nothing where nothing does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import rnnext

TREE = Path(rnnext.__file__).parents[1]
ROOT = Path(__file__).parents[2]


def compare(command, other, *patterns):
    words = ["-m", "tools.compare_builds", command, str(TREE), str(other), *patterns]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_bits_of_a_build_that_rounds_otherwise(tmp_path):
    spoilt = tmp_path / "rnnext"
    shutil.copytree(Path(rnnext.__file__).parent, spoilt)
    stepper = spoilt / "stepper.py"
    source = stepper.read_text()
    assert source.count("self._stepper.step(input)") == 1
    stepper.write_text(
        source.replace("self._stepper.step(input)", "self._stepper.step(input) * (1 + 2**-22)")
    )
    patterns = "call=stepper*dtype=float32*", "call=cell*-H=1[67]-*"
    code, text = compare("bits", tmp_path, *patterns)
    assert code == 1, text
    assert re.search(r"result 0 differs by 2\.\de-07 of the largest value", text)
    assert "call=cell" not in text


def test_times_of_a_build_and_itself():
    code, text = compare("time", TREE, "step-B1-I8-H8-infer")
    assert code in (0, 1), text
    assert "geometric mean of 1 rows" in text
