"""The build and the package: what is chosen, what is shipped, what a mismatch says."""

import subprocess
import tarfile
from pathlib import Path

import torch

import rnnext
from helpers.common import run_python

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(*arguments, cwd=ROOT, **environment)


def test_another_torch_is_refused_with_both_versions_and_the_mend():
    result = run(
        "-c",
        "import torch; torch.__version__ = torch.torch_version.TorchVersion('9.9'); import rnnext",
    )
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    for part in (torch.__version__, "9.9", "pip install"):
        assert part in result.stderr


def test_unbuilt_sources_are_named_with_both_ways_out():
    # As in a clone that was never built: an editable install's own finder would find the module.
    result = run("-c", "import sys; sys.modules['rnnext._build'] = None; import rnnext")
    assert result.returncode != 0
    for part in (
        f"ImportError: Python found the unbuilt sources in {Path(rnnext.__file__).parents[1]} ",
        "change directory",
        "pip install -e . --no-build-isolation",
    ):
        assert part in result.stderr


def test_main_says_what_a_bug_report_needs():
    result = run("-m", "rnnext")
    assert result.returncode == 0, result.stderr
    for part in (
        rnnext.__version__,
        torch.__version__,
        rnnext._C.cpu_isa(),
        "compiler",
        "CUDA archs",
    ):
        assert part in result.stdout


def test_cuda_without_the_means_is_an_error(tmp_path: Path):
    # A CPU build of torch lacks the means; a CUDA build does when there is no nvcc.
    result = run("setup.py", "--version", RNNEXT_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "RNNEXT_CUDA=1 needs a CUDA build of torch and nvcc" in result.stderr


def test_a_wrong_choice_of_cuda_is_an_error():
    result = run("setup.py", "--version", RNNEXT_CUDA="yes")
    assert result.returncode != 0
    assert "RNNEXT_CUDA must be 0 or 1, got 'yes'" in result.stderr


def test_the_source_distribution_holds_every_source(tmp_path: Path):
    result = run("setup.py", "-q", "sdist", "--dist-dir", str(tmp_path), RNNEXT_CUDA="0")
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        shipped = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    sources = {
        str(path.relative_to(ROOT))
        for folder, ending in (("csrc", "*.[ch]*"), ("rnnext", "*.py*"))
        for path in (ROOT / folder).rglob(ending)
        if path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py", ".pyi"} and path.name != "_build.py"
    }
    assert len(sources) > 30
    assert sources <= shipped, sources - shipped
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"} <= shipped
