"""Installs a wheel into a clean environment, out of reach of the sources, and has it prove itself.

``python -m tools.check_wheel WHEEL`` runs ``tools/smoke.py`` there. Of this environment the clean
one sees only the installed packages, above all torch; not rnnext where it is installed in place.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.check_wheel", description=__doc__)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env")
        python = folder / "env" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        options = ["--quiet", "--no-deps", "--no-index", "--no-compile"]
        subprocess.run([*pip, "install", *options, str(wheel)], check=True)
        (place,) = (folder / "env").glob("lib/python*/site-packages")
        (place / "torch.pth").write_text(sysconfig.get_path("purelib"))
        smoke = folder / "smoke.py"
        smoke.write_text(SMOKE.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run([str(python), str(smoke)], check=True, cwd=folder)


if __name__ == "__main__":
    main()
