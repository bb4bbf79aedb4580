import importlib.util
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.torch_version import TorchVersion
from torch.utils import cpp_extension

import rnnext
from helpers.common import ROOT, run_python

RELEASE = ".".join(torch.__version__.split(".")[:2])


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_again(monkeypatch, torchs_version: str) -> None:
    """Import rnnext beside a torch that says that it is of this version."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(torchs_version))
    monkeypatch.delitem(sys.modules, "rnnext")
    importlib.import_module("rnnext")


@pytest.mark.parametrize("version", ["9.9.0+cpu", "2.1", f"{RELEASE}9.0"])
def test_another_torch_is_refused_with_both_versions_and_the_mend(monkeypatch, version):
    with pytest.raises(ImportError) as raised:
        import_again(monkeypatch, version)
    both = f"built for torch {rnnext._build.torch_version},", f"torch {version} is installed"
    for part in (*both, "wheel", "pip install"):
        assert part in str(raised.value)


@pytest.mark.skipif(rnnext._C.build_info()["cuda_archs"] != "", reason="bound to one CUDA")
def test_a_patch_release_of_the_same_torch_is_taken(monkeypatch):
    import_again(monkeypatch, f"{RELEASE}.99+other")


def test_unbuilt_sources_are_named_with_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnnext._build", None)  # as in a clone that was never built
    with pytest.raises(ImportError) as raised:
        import_again(monkeypatch, torch.__version__)
    found = f"Python found the unbuilt sources in {Path(rnnext.__file__).parents[1]} "
    for part in (found, "change directory", "pip install -e ."):
        assert part in str(raised.value)


def test_which_torch_fits(monkeypatch, script):
    for version, cuda, fitting in (
        ("2.13.1+cpu", False, "2.13"),
        ("2.13.0+cu130", True, "2.13.0+cu130"),
        ("2.14.0.dev20260901+cpu", False, "2.14.0.dev20260901+cpu"),
        ("2.14.0a0+git1234567", False, "2.14.0a0+git1234567"),
    ):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert script.fitting(cuda) == fitting


def test_what_cannot_be_built_is_refused_before_anything_is_compiled(monkeypatch, script):
    def refused(message):
        with pytest.raises(SystemExit, match=message):
            script.main()

    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)  # or torch is built without CUDA
    monkeypatch.setenv("RNNEXT_CUDA", "yes")
    refused("RNNEXT_CUDA must be 0 or 1, got 'yes'")
    monkeypatch.setenv("RNNEXT_CUDA", "1")
    refused("RNNEXT_CUDA=1 needs a CUDA build of torch and nvcc")
    for name in ("CFLAGS", "CXXFLAGS"):  # sums in another order
        with monkeypatch.context() as patch:
            patch.setenv(name, "-O2 -ffast-math")
            refused("^-ffast-math in CFLAGS or CXXFLAGS gives up")
    for version in ("2.10.1", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        refused(rf"needs torch >= 2\.11, found torch {version}")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (None, "and .*/c\\+\\+ does not run: apt-get install g\\+\\+, or name another in CXX"),
        ("exit 1", "and .*/c\\+\\+ does not run"),
        (
            "echo '#define __GNUC__ 11'",
            "GCC >= 12 or clang >= 15, and .* is GCC 11: install a newer",
        ),
        ("echo '#define __GNUC__ 4'; echo '#define __clang_major__ 14'", "is clang 14: install"),
        ("echo '#define __GNUC__ 12'", "/nowhere has no Python.h: install Python's headers"),
        ("echo '#define __GNUC__ 4'; echo '#define __clang_major__ 15'", "has no Python.h"),
    ],
)
def test_what_cannot_compile_is_refused_before_the_build(
    monkeypatch, tmp_path: Path, script, says, message
):
    compiler = tmp_path / "c++"
    if says:
        compiler.write_text(f"#!/bin/sh\n{says}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(script.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(SystemExit, match=message):
        script.BuildExtension.run(None)  # it stops before it looks at the command


def test_nvcc_without_headers_does_not_end_a_cpu_build(monkeypatch, tmp_path: Path, script):
    monkeypatch.delenv("RNNEXT_CUDA", raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        assert not script.find_cuda()
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch(0o755)
    assert script.find_cuda()


@pytest.fixture
def build_tools(tmp_path: Path) -> Path:
    """A folder with setuptools and nothing else, as a frontend gives an isolated build."""
    folder = tmp_path / "tools"
    folder.mkdir()
    place = Path(importlib.util.find_spec("setuptools").origin).parents[1]
    for name in ("setuptools", "pkg_resources", "_distutils_hack"):
        if (place / name).exists():
            (folder / name).symlink_to(place / name)
    return folder


def test_an_isolated_build_of_pip_finds_the_torch_of_the_environment(build_tools: Path):
    hidden = [path for path in sys.path if (Path(path) / "torch").exists()]
    result = run_python(
        "-c",
        f"import sys; sys.path = [p for p in sys.path if p not in {hidden!r}]\n"
        f"sys.path += [{str(ROOT / 'tools')!r}, {str(build_tools)!r}]\n"
        "import build_backend, setuptools, torch\n"
        "print(torch.__version__, torch.__file__, setuptools.__file__, sep='\\n')\n"
        "build_backend.build_wheel",
    )
    assert result.returncode == 0, result.stderr
    tools = str(build_tools / "setuptools" / "__init__.py")
    assert result.stdout.split("\n")[:3] == [torch.__version__, torch.__file__, tools]


def test_a_build_without_torch_stops_with_the_commands(tmp_path: Path, build_tools: Path):
    venv.create(tmp_path / "empty")
    result = subprocess.run(
        [tmp_path / "empty" / "bin" / "python", "-c", "import build_backend"],
        env={"PYTHONPATH": f"{ROOT / 'tools'}:{build_tools}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for part in (
        str(tmp_path / "empty"),
        "pip install 'torch>=2.11'\n    pip install .\n",
        "pip install . --no-build-isolation",
        "python -m build --no-isolation",
    ):
        assert part in result.stderr


def test_the_source_distribution_holds_every_source(tmp_path: Path):
    made = run_python("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), cwd=ROOT)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    assert "+" not in archive.name
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    shipped = tmp_path / archive.name.removesuffix(".tar.gz")
    # Any torch: only a wheel is for one.
    assert "\nRequires-Dist: torch>=2.11\n" in (shipped / "PKG-INFO").read_text()
    places = [path for folder in ("csrc", "rnnext") for path in (ROOT / folder).rglob("*.*")]
    sources = [p for p in places if p.suffix in (".cpp", ".h", ".cu", ".cuh", ".py", ".pyi")]
    names = {str(path.relative_to(ROOT)) for path in sources} - {"rnnext/_build.py"}
    names |= {"LICENSE", "README.md", "CHANGELOG.md", "setup.py", "tools/build_backend.py"}
    assert [name for name in sorted(names) if not (shipped / name).is_file()] == []
    assert not (shipped / "rnnext/_build.py").exists()  # says that an extension was built


@pytest.mark.skipif(sys.platform != "linux", reason="reads the ELF file")
def test_the_library_is_hardened():
    """No memory is both written and run, what the loader resolves is read-only from then on, and
    buffers on the stack are guarded."""
    command = ["readelf", "-lWd", "--dyn-syms", rnnext._C.__file__]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"GNU_STACK .* RW +0x", shown)
    assert "GNU_RELRO" in shown
    assert "BIND_NOW" in shown
    assert "__stack_chk_fail" in shown
    for bad in ("RWE", "TEXTREL", "RPATH", "RUNPATH"):
        assert bad not in shown
