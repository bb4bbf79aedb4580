"""The build backend: setuptools', with the torch of the environment that is installed into.

Build frontends isolate a build from that environment, and would download whatever torch
``build-system.requires`` names, the newest one, beside which the installed torch then refuses the
extension. So torch is not named there; it is looked for here, and without it nothing is built.
"""

import site
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  the hooks that frontends call

# pip runs an isolated build on the same interpreter and only hides these from it. build and uv run
# it on another one.
_places = [*site.getsitepackages(), site.getusersitepackages()]

if find_spec("torch") is None:
    _found = [place for place in _places if (Path(place) / "torch" / "version.py").is_file()]
    if not _found:
        raise SystemExit(
            "rnnext is compiled against the torch that it will run beside, and finds none in "
            f"{_places[0]}\nInstall it first:\n\n"
            "    pip install 'torch>=2.11'\n"
            "    pip install .\n\n"
            "Only pip shows an isolated build the installed torch. With others, install torch, "
            "'setuptools>=77', ninja and pybind11, and\n\n"
            "    uv pip install . --no-build-isolation\n"
            "    python -m build --no-isolation\n"
        )
    sys.path.append(_found[0])  # behind the build's own setuptools
