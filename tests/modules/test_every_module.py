import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import rnnext
from helpers.common import assert_close, assert_refused, same
from helpers.modules import OF_TORCH, SAMPLES, TOKENS, X, outputs, results, through_a_file
from rnnext import embedding_rnn

of_all = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
of_torch = pytest.mark.parametrize("sample", OF_TORCH.values(), ids=OF_TORCH)


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    """An EmbeddingRNN multiplies the rows that occur, though its table is small."""
    monkeypatch.setattr(embedding_rnn, "COUNTED_WORK", 0)


@of_torch
def test_attributes_initial_values_and_repr(sample):
    theirs, ours = sample.pair(dtype=torch.float64)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.RNNBase if sample.is_layer else type(theirs))
    for name in [*theirs.__constants__, "training"]:
        assert getattr(ours, name) == getattr(theirs, name)
    assert {name for name in dir(theirs) if not name.startswith("_")} <= set(dir(ours))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert same(ours.state_dict().values(), theirs.state_dict().values())


@of_all
def test_copies_are_equal_and_independent(sample):
    """Also through a file that is loaded as safe, with what a user has added."""
    module = sample.make()
    module.weight_of_a_user = nn.Parameter(torch.ones(2), requires_grad=False)
    results(module, sample.given)  # max_norm scales rows
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(module.state_dict())
    ways = (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_a_file)
    for twin in (other, *(way(module) for way in ways)):
        assert type(twin) is type(module)
        assert repr(twin) == repr(module)
        assert twin.state_dict().keys() == module.state_dict().keys()
        assert not twin.weight_of_a_user.requires_grad
        expected = results(module, sample.given)
        assert same(results(twin, sample.given), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert same(results(module, sample.given), expected)


@of_all
def test_a_result_without_a_gradient_gives_none(sample):
    for options in ({}, {"Embedding": {"sparse": True}}.get(sample.kind, {"bias": False})):
        module, given = sample.make(**options), sample.given.clone()
        given.requires_grad_(given.is_floating_point())
        torch._C._functions.UndefinedGrad()(outputs(module, given)[0]).sum().backward()
        assert all(v.grad is None for v in (given, *module.parameters()))


@of_all
def test_trains_on_an_input_that_was_made_in_inference_mode(sample):
    """Autograd refuses to save it, torch.nn copies it if the batch comes first."""
    module, found = sample.make(), []
    for given in (torch.inference_mode()(sample.given.clone)(), sample.given):
        module.zero_grad()
        sum(v.square().sum() for v in outputs(module, given)).backward()
        found.append([parameter.grad for parameter in module.parameters()])
    assert same(*found)


@of_all
def test_checkpointing_keeps_nothing(sample):
    """Torch ends what it computes again by an exception, in the midst of its recording."""
    module, uses = sample.make(), []
    expected = results(module, sample.given)
    call = functools.partial(checkpoint, module, use_reentrant=False)
    call.parameters = module.parameters
    for _ in range(3):
        assert same(results(call, sample.given), expected)
        uses.append([parameter._use_count() for parameter in module.parameters()])
    assert uses == [uses[0]] * 3


@of_all
def test_autocast(sample):
    module = sample.make().eval()
    expected = [v.detach() for v in outputs(module, sample.given)]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found, wanted = outputs(module, sample.given), dtype
            if sample.kind in ("RNN", "RNNCell", "Embedding"):  # (torch.nn's gates mix dtypes.)
                wanted = outputs(sample.make(nn), sample.given)[0].dtype
        assert {v.dtype for v in found} == {wanted}
        assert_close(found, expected, dtype)
        module.zero_grad()
        found[0].float().sum().backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in module.parameters())


@of_all
def test_meta_device(sample):
    module, expected = sample.make(device="meta"), outputs(sample.make(), sample.given)
    found = outputs(module, sample.given.to("meta"))
    assert [(v.shape, v.device.type) for v in found] == [(v.shape, "meta") for v in expected]
    assert type(module).__name__ in repr(module)
    with torch.device("meta"):
        assert sample.make()(sample.given.to("meta"))[0].is_meta
    if "Leaky" not in sample.kind:  # alpha was lost
        real = outputs(module.to_empty(device="cpu"), sample.given)
        assert [v.shape for v in real] == [v.shape for v in expected]


@of_torch
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_norm(sample):
    """Weights by a parametrization, and by the old way, which sets them before each call."""
    plain = {"padding_idx": None, "max_norm": None} if sample.kind == "Embedding" else {}
    for weight_norm in (parametrizations.weight_norm, nn.utils.weight_norm):
        theirs, ours = (weight_norm(m, sample.weight) for m in sample.pair(**plain))
        for _ in range(2):
            assert_close(results(ours, sample.given), results(theirs, sample.given))
            for parameter in (*theirs.parameters(), *ours.parameters()):
                parameter.data.mul_(0.5)


@of_all
def test_compiled_into_one_graph(sample):
    torch.compiler.reset()
    module = sample.make()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled.parameters = module.parameters
    longer = sample.longer
    for given in (sample.given, longer, longer[1:]):  # the second time, sizes become dynamic
        assert_close(results(compiled, given), results(module, given))
    with torch.no_grad():
        assert_close(outputs(compiled, longer), outputs(module, longer))
    if sample.is_layer:
        options = {"lengths": [5, 3], "reset": torch.rand(5, 2) < 0.3}
        given, packed = sample.given, pack_padded_sequence(sample.given, [5, 3])
        assert_close(results(compiled, given, **options), results(module, given, **options))
        assert_close(results(compiled, packed), results(module, packed))
        torch.compile(module, backend="eager")(packed)  # breaks the graph
        torch.compile(sample.make(), fullgraph=True, backend="eager")(longer)


@of_torch
def test_compiled_autograd(sample):
    module, found = sample.make(), []

    def train():
        outputs(module, sample.given)[0].square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        for step in (train, torch.compile(train, backend="eager")):
            module.zero_grad()
            step()
            found.append([p.grad.clone() for p in module.parameters()])
    assert_close(found[1], found[0])


@of_all
def test_exports_with_dynamic_sizes(sample):
    module, given = sample.make().eval(), sample.given
    sizes = dict.fromkeys(range(given.dim() - given.is_floating_point()), torch.export.Dim.DYNAMIC)
    if sample.kind == "Embedding":
        module.max_norm = None  # which writes into the table
    longer = sample.longer
    for strict in (False, True):
        program = torch.export.export(module, (given,), dynamic_shapes=(sizes,), strict=strict)
        for x in (given, longer, longer[:, :1] if len(sizes) > 1 else longer[:1]):
            assert_close(outputs(program.module(), x), outputs(module, x))


def test_code_in_the_state_of_a_module_is_refused():
    module = rnnext.RNN(3, 4)
    module._forward_hooks[0] = print  # what a hostile file would have in its place
    with pytest.raises(pickle.UnpicklingError, match="print"):
        through_a_file(module)


@of_all
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_the_module_for_any_batch_and_length(sample):
    module, given, file = sample.make().eval(), sample.given, io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (given,)), file)
    file.seek(0)
    trace = torch.jit.load(file)
    for x in (given, sample.longer):
        assert_close(results(trace, x), results(module, x))


@of_all
def test_torch_fx_records_a_leaf(sample):
    """Its dropout and noise follow the graph's mode."""
    for traced_in in (True, False):
        module = sample.make()
        graph = symbolic_trace(nn.Sequential(module).train(traced_in))
        calls = [(node.op, node.target) for node in graph.graph.nodes if "call" in node.op]
        assert calls == [("call_module", "0")]
        for training in (True, False):
            graph.train(training)
            module.train(training)
            assert same(outputs(graph, sample.given), outputs(module, sample.given))


def test_torch_fx_records_all_arguments():
    class Model(nn.Module):
        def __init__(self, rnn, cell):
            super().__init__()
            self.rnn, self.cell = rnn, cell

        def forward(self, x, hx, lengths, reset, reset_state, state):
            output, h_n = self.rnn(x, hx, lengths, reset, reset_state)
            return output, h_n, self.cell(output[0], state)

    states = torch.randn(1, 2, 4), torch.randn(1, 4), torch.randn(2, 4)  # hx, reset_state, a cell's
    lengths, reset = torch.tensor([5, 3]), torch.tensor([[False, True]] * 5)
    for rnn, kind, x in (
        (rnnext.RNN(3, 4), "RNNCell", X),
        (rnnext.GRU(3, 4), "GRUCell", X),
        (rnnext.LSTM(3, 4), "LSTMCell", X),
        (rnnext.LeakyRNN(3, 4, alpha=0.5), "RNNCell", X),
        (rnnext.EmbeddingRNN(7, 3, 4), "RNNCell", TOKENS),
    ):
        model = Model(rnn, getattr(rnnext, kind)(4, 4))
        own = [(h, 2 * h) for h in states] if kind == "LSTMCell" else states
        given = (x, own[0], lengths, reset, *own[1:])
        assert same(outputs(symbolic_trace(model), *given), outputs(model, *given))


class Doubled(rnnext.RNN):
    def forward(self, x):
        return 2 * super().forward(x)[0]


def test_torch_fx_records_once_what_a_leaf_would_do_twice():
    hooked = rnnext.RNN(3, 4)
    hooked.register_forward_pre_hook(lambda _, given: (3 * given[0],))
    for module in (hooked, Doubled(3, 4)):
        graph = symbolic_trace(nn.Sequential(module))
        assert torch.ops.rnnext.rnn.default in [node.target for node in graph.graph.nodes]
        assert same(outputs(graph, X), outputs(module, X))


@of_all
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_scripted_or_exported_says_what_to_do(sample):
    module = sample.make()
    models = [module, nn.Sequential(nn.Sequential(module))]
    advice = f"rnnext.{sample.kind}; torch.nn has no such module: use "
    if sample.of_torch:
        advice = f"rnnext.{sample.kind}: call rnnext.revert(model) first, which makes it "
        advice += f"torch.nn.{sample.kind}, or use "
        models.append(parametrizations.weight_norm(sample.make(), sample.weight))
    for model in models:
        message = f"torch.jit.script cannot compile {advice}torch.jit.trace"
        assert_refused(torch.jit.script, NotImplementedError, message, model)
        export = functools.partial(torch.onnx.export, model, (sample.given,), dynamo=False)
        message = f"the legacy ONNX exporter (dynamo=False) cannot export {advice}torch.onnx.export"
        assert_refused(export, NotImplementedError, message, io.BytesIO())


def test_torch_reads_the_weights_from_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="in the extra `test`")
    theirs, ours = SAMPLES["RNN"].pair()
    nn.init.zeros_(theirs.weight_hh_l1)
    safetensors.save_model(ours, tmp_path / "model")
    assert safetensors.load_model(theirs, tmp_path / "model") == (set(), [])
    assert_close(outputs(ours, X), outputs(theirs, X))
