"""`python -m tools.cuda_check.build`: rnnext built beside the torch of this Python.

Each toolkit that is found is tried in turn; the last one is NVIDIA's compiler from PyPI, of the
CUDA of this torch. $TORCH_CUDA_ARCH_LIST says for which cards. Waits of the kernels are bounded.
`rehearse` compiles the kernels alone, for the interpreter of tests/cuda_ptx.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.cuda_build import ROOT, TOOLKIT, compiler, toolkit

BUILD = ROOT / "build" / "cuda-check"
PACKAGES = BUILD / "packages"
BOUND = 20_000_000_000  # cycles after which a wait is given up: some 10 s


def toolkits() -> list[Path]:
    """Folders with bin/nvcc: the one that torch takes, and those of pip's packages."""
    from torch.utils.cpp_extension import CUDA_HOME

    found = [Path(CUDA_HOME)] if CUDA_HOME else []
    for packages in (Path(sysconfig.get_path("purelib")), TOOLKIT):
        found += sorted(packages.glob("nvidia/cu*"))
    return [home for home in dict.fromkeys(found) if (home / "bin" / "nvcc").exists()]


def environment(home: Path) -> dict[str, str]:
    """ninja lies beside the Python that runs, whose environment may not be activated. PyPI's
    packages of the compiler have no libcudart.so, which the linker wants, and no headers of the
    libraries that torch's headers include: those come with torch's own packages."""
    links = BUILD / "libraries"
    links.mkdir(parents=True, exist_ok=True)
    for library in home.glob("lib*/libcudart.so.*"):
        (links / "libcudart.so").unlink(missing_ok=True)
        (links / "libcudart.so").symlink_to(library)
    headers = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/include")
    first = {
        "PATH": [Path(sys.executable).parent, home / "bin"],
        "LIBRARY_PATH": [links],
        "CPATH": headers,
    }
    return os.environ | {
        **{n: os.pathsep.join([*map(str, f), os.environ.get(n, "")]) for n, f in first.items()},
        "CUDA_HOME": str(home),
        "NVCC_APPEND_FLAGS": f"-DRNNEXT_CUDA_BOUNDED={BOUND}",
        "RNNEXT_CUDA": "1",  # without nvcc this must fail, not build the CPU half alone
        "MAX_JOBS": str(len(os.sched_getaffinity(0))),
    }


def build(home: Path) -> bool:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(PACKAGES), "build"]
    command += ["--build-base", str(BUILD), "--build-temp", str(BUILD / "objects")]
    command += ["--build-lib", str(PACKAGES)]
    print(f"building with {home}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment(home)).returncode == 0


def main() -> int:
    if sys.argv[1:] == ["rehearse"]:
        from cuda_ptx import build as ptx

        ptx.compile_all(list(ptx.CUDA.rglob("*.cu")))
        return 0
    import torch

    PACKAGES.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "torch.utils.collect_env"])  # what does not fit shows
    built = any(map(build, toolkits())) or build(toolkit(compiler(torch.version.cuda or "13.0")))
    return 0 if built else 1


if __name__ == "__main__":
    sys.exit(main())
