"""The comparison of two builds finds what differs, to the bit, and nothing where nothing does."""

import re
import shutil
from pathlib import Path

import rnnext
from helpers.common import ROOT, run_python


def test_bits_of_a_build_that_rounds_otherwise(tmp_path):
    built, spoilt = Path(rnnext.__file__).parent, tmp_path / "rnnext"
    shutil.copytree(built, spoilt)
    stepper = spoilt / "stepper.py"
    source = stepper.read_text()
    assert source.count("self._stepper.step(input)") == 1
    step = "self._stepper.step(input)"
    stepper.write_text(source.replace(step, f"{step} * (1 + 2**-22)"))
    words = ["-m", "tools.compare_builds", "bits", str(built.parent), str(tmp_path)]
    done = run_python(*words, "call=stepper*dtype=float32*", "call=cell*-H=1[67]-*", cwd=ROOT)
    assert done.returncode == 1, done.stderr
    text = done.stdout
    assert re.search(r"result 0 differs by 2\.\de-07 of the largest value", text)
    assert "call=cell" not in text
