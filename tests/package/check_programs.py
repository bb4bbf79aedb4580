"""Every module x way to compile or export it x dynamic sizes x dtype: the values of the eager call.

``pytest tests/package/check_programs.py``; the compilers take minutes, so `make test` leaves it
out. The cases hold each pair of values.
"""

import pytest
import torch
from torch.export import Dim

from helpers.common import SEARCH, assert_close, pairwise, run_python
from helpers.modules import SAMPLES, outputs, results

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LOADED = """
import sys, torch, rnnext
program, x = torch.export.load(sys.argv[1]).module(), torch.load(sys.argv[2])
torch.save(torch.utils._pytree.tree_leaves(program(x)), sys.argv[2])
"""


def compiled(module, given, sizes, path):
    torch.compiler.reset()
    program = torch.compile(module, fullgraph=True, dynamic=bool(sizes))
    program.parameters = module.parameters
    return lambda x: results(program, x)


def exported(module, given, sizes, path):
    """Run in a new process."""
    torch.export.save(torch.export.export(module, (given,), dynamic_shapes=(sizes,)), path)

    def call(x):
        calls = path.with_suffix(".calls")
        torch.save(x, calls)
        run = run_python("-c", LOADED, str(path), str(calls), PYTHONPATH=SEARCH)
        assert run.returncode == 0, run.stderr
        return torch.load(calls)

    return call


def packaged(module, given, sizes, path):
    with torch.no_grad():
        program = torch.export.export(module, (given,), dynamic_shapes=(sizes,))
        options = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # to wait less
        where = {"package_path": str(path), "inductor_configs": options}
        package = torch._inductor.aoti_compile_and_package(program, **where)
    library = torch._inductor.aoti_load_package(package)
    return lambda x: outputs(library, x)


def of_onnx(module, given, sizes, path):
    import onnxruntime

    from package import test_onnx

    program = test_onnx.exported(module, (given,), (sizes,))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = [each.name for each in session.get_inputs()]
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


WAYS = [compiled, exported, packaged, of_onnx]


def possible(case):
    """ONNX's RNN has no leak, and onnxruntime's is of float32."""
    leaks = "Leaky" in SAMPLES[case["kind"]].kind
    return case["way"] is not of_onnx or (case["dtype"] == torch.float32 and not leaks)


CASES = pairwise(possible, kind=SAMPLES, way=WAYS, dynamic=[False, True], dtype=DTYPES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}-{c['way'].__name__}")
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_values_are_those_of_the_eager_call(case, tmp_path):
    sample, dtype = SAMPLES[case["kind"]], case["dtype"]
    module = sample.make().to(dtype).eval()
    if sample.kind == "Embedding":
        module.max_norm = None  # which writes into the table
    inputs = (sample.given, sample.longer)
    given, longer = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
    axes = range(given.dim() - given.is_floating_point())
    sizes = dict.fromkeys(axes, Dim.DYNAMIC) if case["dynamic"] else None
    program = case["way"](module, given, sizes, tmp_path / "program.pt2")
    for x in (given, longer) if case["dynamic"] else (given,):
        expected = (results if case["way"] is compiled else outputs)(module, x)
        assert_close(program(x), [v.detach() for v in expected], dtype)
