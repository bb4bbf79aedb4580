"""The build and the package: what is chosen, what is shipped, what a mismatch says."""

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


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(*arguments, cwd=ROOT, **environment)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def say(monkeypatch, version: str) -> None:
    """Let torch say that it is of this version."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))


def import_again(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "rnnext")
    importlib.import_module("rnnext")


@pytest.mark.parametrize("version", ["9.9.0+cpu", "2.1", f"{RELEASE}9.0"])
def test_another_torch_is_refused_with_both_versions_and_the_mend(monkeypatch, version):
    say(monkeypatch, version)
    with pytest.raises(ImportError) as raised:
        import_again(monkeypatch)
    both = f"built for torch {rnnext._build.torch_version},", f"torch {version} is installed"
    for part in (*both, "wheel", "pip install"):
        assert part in str(raised.value)


@pytest.mark.skipif(rnnext._C.build_info()["cuda_archs"] != "", reason="bound to one CUDA")
def test_a_patch_release_of_the_same_torch_is_taken(monkeypatch):
    say(monkeypatch, f"{RELEASE}.99+other")
    import_again(monkeypatch)


def test_unbuilt_sources_are_named_with_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnnext._build", None)  # as in a clone that was never built
    with pytest.raises(ImportError) as raised:
        import_again(monkeypatch)
    found = f"Python found the unbuilt sources in {Path(rnnext.__file__).parents[1]} "
    for part in (found, "change directory", "pip install -e ."):
        assert part in str(raised.value)


def test_which_torch_fits(monkeypatch):
    for version, cuda, fitting in (
        ("2.13.0+cpu", False, "2.13"),
        ("2.13.1", False, "2.13"),
        ("2.13.0+cu130", True, "2.13.0+cu130"),
        ("2.14.0.dev20260901+cpu", False, "2.14.0.dev20260901+cpu"),
        ("2.14.0a0+git1234567", False, "2.14.0a0+git1234567"),
    ):
        say(monkeypatch, version)
        assert script().fitting(cuda) == fitting
    for version in ("2.10.1", "1.13.0"):  # before anything is compiled
        say(monkeypatch, version)
        with pytest.raises(SystemExit, match=rf"needs torch >= 2\.11, found torch {version}"):
            script().main()


def test_a_wrong_choice_of_cuda_is_an_error(monkeypatch, tmp_path: Path):
    """A CPU build of torch lacks the means; a CUDA build does when there is no nvcc."""
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    for choice, message in (
        ("yes", "RNNEXT_CUDA must be 0 or 1, got 'yes'"),
        ("1", "RNNEXT_CUDA=1 needs a CUDA build of torch and nvcc"),
    ):
        monkeypatch.setenv("RNNEXT_CUDA", choice)
        with pytest.raises(SystemExit, match=message):
            script().find_cuda()


@pytest.mark.parametrize("name", ["CFLAGS", "CXXFLAGS"])
def test_flags_that_reorder_sums_are_refused(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.setenv(name, "-O2 -ffast-math")
    with pytest.raises(SystemExit, match=r"^-ffast-math in CFLAGS or CXXFLAGS gives up"):
        script().main()


def test_a_compiler_without_its_headers_does_not_end_a_build_for_the_cpu(
    monkeypatch, tmp_path: Path
):
    monkeypatch.delenv("RNNEXT_CUDA", raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        assert not script().find_cuda()
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch(0o755)
    assert script().find_cuda()


def test_a_wheel_names_its_torch_and_requires_it(tmp_path: Path):
    result = run("setup.py", "-q", "dist_info", "--output-dir", str(tmp_path), RNNEXT_CUDA="0")
    assert result.returncode == 0, result.stderr
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    lines = metadata.read_text().split("\n")
    assert f"Requires-Dist: torch=={RELEASE}.*" in lines
    (version,) = [line for line in lines if line.startswith("Version: ")]
    assert version.endswith(f"+torch{RELEASE}")


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
    result = run(
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
        check=False,
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
    result = run("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), RNNEXT_CUDA="0")
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
        (info,) = [name for name in tar.getnames() if name.count("/") == 1 and "PKG-INFO" in name]
        metadata = tar.extractfile(info).read().decode()
    assert "\nRequires-Dist: torch>=2.11\n" in metadata  # any torch: only a wheel is for one
    assert "+" not in archive.name
    sources = {
        str(path.relative_to(ROOT))
        for folder, ending in (("csrc", "*.[ch]*"), ("rnnext", "*.py*"))
        for path in (ROOT / folder).rglob(ending)
        if path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py", ".pyi"} and path.name != "_build.py"
    }
    assert len(sources) > 30
    assert sources <= shipped, sources - shipped
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= shipped
    assert "tools/build_backend.py" in shipped
    assert "rnnext/_build.py" not in shipped  # says that an extension was built


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
