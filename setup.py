"""Build script: which sources and flags, CUDA on or off, and what follows from the torch at hand.

All other metadata lives in pyproject.toml.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

OLDEST = "2.11"
UNSAFE = {"-Ofast", "-ffast-math", "-ffinite-math-only", "-funsafe-math-optimizations"}


def find_cuda() -> bool:
    """Whether to build the CUDA half: never a question of whether this machine has a GPU."""
    want = os.environ.get("RNNEXT_CUDA", "auto")
    if want not in ("auto", "0", "1"):
        raise SystemExit(f"RNNEXT_CUDA must be 0 or 1, got {want!r}")
    home = cpp_extension.CUDA_HOME
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else None
    have = torch.version.cuda is not None and nvcc is not None
    if want == "1" and not have:
        raise SystemExit(
            "RNNEXT_CUDA=1 needs a CUDA build of torch and nvcc; "
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}, nvcc: {nvcc}"
        )
    # Else a lone nvcc on the path, without a toolkit's headers, would end a build for the CPU.
    headers = [*Path(home or "").glob("include/cuda_runtime.h"),
               *Path(home or "").glob("targets/*/include/cuda_runtime.h")]  # fmt: skip
    return want == "1" or (want == "auto" and have and bool(headers))


def check_compiler() -> None:
    """Raise SystemExit where nothing could be compiled, before minutes go into it."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    command = [*shlex.split(compiler), "-dM", "-E", "-x", "c++", os.devnull]
    needs = "rnnext is compiled when it is installed, with GCC >= 12 or clang >= 15"
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            f"{needs}, and {compiler} does not run: apt-get install g++, or name another in CXX"
        ) from None
    versions = dict(re.findall(r"#define (__GNUC__|__clang_major__) (\d+)", text))
    clang = versions.get("__clang_major__")
    name, version = ("clang", int(clang)) if clang else ("GCC", int(versions["__GNUC__"]))
    if version < (15 if clang else 12):
        raise SystemExit(
            f"{needs}, and {compiler} is {name} {version}: install a newer one, and name it in CXX"
        )
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        raise SystemExit(f"{headers} has no Python.h: install Python's headers (python3-dev)")


# The files of csrc/cpu/isa, and which ones each needs besides. The last is for tests.
ISAS = {
    "generic": (),
    "avx2": (),
    "avx512": (),
    "avx512_bf16": ("avx512",),
    "amx": ("avx512_bf16", "avx512"),
    "neon_bf16": ("generic",),
    "amx_stand_in": ("generic",),
}
ARM = {"generic", "neon_bf16"}


def native_isa() -> str:
    """The best one that this processor has, as /proc/cpuinfo tells."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    if platform.machine() in ("aarch64", "arm64"):
        return "neon_bf16" if " bf16" in text else "generic"
    for isa, needs in (
        ("amx", "amx_bf16 amx_tile"),
        ("avx512_bf16", "avx512_bf16"),
        ("avx512", "avx512f avx512vl avx512bw avx512dq"),
        ("avx2", "avx2 fma"),
    ):
        if all(re.search(rf"\b{flag}\b", text) for flag in needs.split()):
            return isa
    return "generic"


def isa_sources() -> list[str]:
    """The kernels to build, those first that take longest.

    RNNEXT_ISAS: "all" (the default), "native" for this machine alone, which takes a third of the
    time, or names of csrc/cpu/isa, separated by commas.
    """
    wanted: set[str] = set()
    for name in os.environ.get("RNNEXT_ISAS", "all").split(","):
        if name == "all":
            arm = platform.machine() in ("aarch64", "arm64")
            chosen = (ARM if arm else set(ISAS) - {"neon_bf16"}) - {"amx_stand_in"}
        else:
            chosen = {native_isa() if name == "native" else name}
        for isa in chosen:
            if isa not in ISAS:
                known = ", ".join(["all", "native", *ISAS])
                raise SystemExit(f"RNNEXT_ISAS must list some of {known}, got {isa!r}")
            wanted |= {isa, *ISAS[isa]}
    slowest = ["avx512", "avx2", "amx", "generic"]
    order = sorted(wanted, key=lambda isa: slowest.index(isa) if isa in slowest else len(slowest))
    return [f"csrc/cpu/isa/{isa}.cpp" for isa in order]


def as_one(folder: str) -> str:
    """A file that includes all sources of a folder, so that torch's headers are read once for it.

    They take the compiler 4 to 8 s, more than most of the sources themselves.
    """
    root = Path(__file__).resolve().parent
    names = sorted(glob(f"{folder}/*.cpp", root_dir=root / "csrc"))
    text = "".join(f'#include "{name}"\n' for name in names)
    path = root / "build" / "sources" / f"{folder.replace('/', '_')}.cpp"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path.relative_to(root))


def extension(cuda: bool):
    root = Path(__file__).resolve().parent
    sources = [as_one("ops"), *isa_sources(), "csrc/module.cpp", as_one("cpu/binding")]
    sources += [as_one("cpu/rnn"), as_one("cpu/runtime"), "csrc/cpu/isa/dispatch.cpp"]
    macros = [("RNNEXT_TORCH_VERSION", f'"{torch.__version__}"')]
    macros.append(("AT_PER_OPERATOR_HEADERS", None))  # what is included, not all of ATen
    if cuda:
        for ending in ("cpp", "cu"):
            sources += sorted(glob(f"csrc/cuda/*/*.{ending}", root_dir=root))
        # Every card from Turing on, whatever card this machine has or lacks.
        newest = (
            "9.0;10.0+PTX;12.0"
            if tuple(map(int, torch.version.cuda.split("."))) >= (12, 8)
            else "9.0"
        )
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"7.5;8.0;{newest}+PTX")
        macros.append(("RNNEXT_CUDA_ARCHS", f'"{archs}"'))
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    # Without -march: the files under csrc/cpu/isa choose their own target.
    cxx = ["-std=c++20", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"]
    cxx.append("-falign-loops=64")  # a tile's loop: up to 12 % by where the linker puts it
    cxx.append("-Wno-psabi")  # vectors wider than the target's: the stand-in of AMX
    cxx.append("-fstack-protector")  # for workspaces on the stack; "-strong" slows short calls
    # What -O3 adds makes nothing faster but for the loops over gates, which -fpeel-loops unrolls.
    # Code that sanitizers watch takes minutes a file to optimize.
    sanitized = "-fsanitize" in os.environ.get("CFLAGS", "")
    cxx += ["-O1"] if sanitized else ["-O2", "-fpeel-loops"]
    return kind(
        "rnnext._C",
        sources,
        include_dirs=[str(root / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": ["-std=c++20", "-O3"]} if cuda else cxx,
        # Pointers to functions are resolved as it is loaded, and can then not be written to.
        extra_link_args=[] if sys.platform == "darwin" else ["-Wl,-z,relro,-z,now,-z,noexecstack"],
    )


def fitting(cuda: bool) -> str:
    """How the version of a torch begins that the extension can be imported beside.

    Patch releases keep the interfaces that it is compiled against. Builds between releases need
    not, and the CUDA half is bound to the CUDA of its torch.
    """
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\+.*)?", torch.__version__)
    return release[1] if release and not cuda else torch.__version__


class BuildExtension(cpp_extension.BuildExtension):
    def run(self) -> None:
        """Build, and leave the fitting torch where an import can read it before linking."""
        check_compiler()
        if self.editable_mode:  # where `build_ext --inplace` looks, not a folder that pip deletes
            self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"
        super().run()
        package = Path("rnnext" if self.inplace else os.path.join(self.build_lib, "rnnext"))
        (package / "_build.py").write_text(f'torch_version = "{fitting(find_cuda())}"\n')


def main() -> None:
    if torch.__version__ < OLDEST:  # as versions: it is no plain str
        raise SystemExit(f"rnnext needs torch >= {OLDEST}, found torch {torch.__version__}")
    if "sdist" in sys.argv:  # serves every torch
        setup(install_requires=[f"torch>={OLDEST}"])
        return
    flags = f"{os.environ.get('CFLAGS', '')} {os.environ.get('CXXFLAGS', '')}".split()
    for flag in UNSAFE.intersection(flags):
        raise SystemExit(
            f"{flag} in CFLAGS or CXXFLAGS gives up what every kernel promises: an order of sums, "
            "NaN and infinities"
        )
    cuda = find_cuda()
    release = ".".join(torch.__version__.split(".")[:2])
    label = f"+torch{release}" + (f".cu{torch.version.cuda.replace('.', '')}" if cuda else "")
    setup(
        install_requires=[f"torch=={release}.*"],
        ext_modules=[extension(cuda)],
        cmdclass={"build_ext": BuildExtension},
        options={"egg_info": {"tag_build": label}},
    )


if __name__ == "__main__":
    main()
