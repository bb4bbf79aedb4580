"""Modules and models in files, and the other ways torch has to take them elsewhere."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_close, same, steps

X, TOKENS = torch.randn(5, 2, 3), torch.randint(7, (5, 2))
MODULES = {
    "RNN": (lambda: rnnext.RNN(3, 4, 2, "relu", dropout=0.5, bidirectional=True), X),
    "RNNCell": (lambda: rnnext.RNNCell(3, 4, bias=False), X[0]),
    "LeakyRNN": (lambda: rnnext.LeakyRNN(3, 4, 2, alpha=torch.rand(4), form="voltage"), X),
    "learned alpha": (lambda: rnnext.LeakyRNN(3, 4, alpha=0.5, learn_alpha=True), X),
    "Embedding": (lambda: rnnext.Embedding(7, 4, padding_idx=1, max_norm=0.5), TOKENS),
    "EmbeddingRNN": (lambda: rnnext.EmbeddingRNN(7, 4, 5), TOKENS),
}
parametrize_modules = pytest.mark.parametrize(
    ("make", "given"), MODULES.values(), ids=MODULES.keys()
)


def flat(result):
    return result if isinstance(result, tuple) else (result,)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@parametrize_modules
def test_a_whole_module_is_loaded_as_safe(make, given):
    module = make().eval()
    module.weight_of_a_user = nn.Parameter(torch.ones(2))
    loaded = through_a_file(module)
    assert type(loaded) is type(module)
    assert repr(loaded) == repr(module)
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert same(flat(loaded(given)), flat(module(given)))
    for one, other in zip(loaded.parameters(), module.parameters(), strict=True):
        assert one is not other
        assert one.requires_grad == other.requires_grad


def test_a_loaded_module_trains_as_the_saved_one():
    module = rnnext.RNN(3, 4, 2)
    loaded = through_a_file(module)
    for each in (module, loaded):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            each(X)[0].square().sum().backward()
            optimizer.step()
    assert same(loaded.parameters(), module.parameters())


@pytest.mark.parametrize("kind", ["file", "pickle", "copy", "deepcopy"])
def test_a_stepper_goes_on_where_it_was(kind):
    stepper = rnnext.Stepper(rnnext.RNN(3, 4, 2), batch_size=2)
    steps(stepper, X)
    copies = {
        "file": through_a_file,
        "pickle": lambda s: pickle.loads(pickle.dumps(s)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }
    twin = copies[kind](stepper)
    assert torch.equal(twin.get_state(), stepper.get_state())
    assert torch.equal(steps(twin, X), steps(stepper, X))


@pytest.mark.parametrize("where", ["_forward_hooks", "_backward_hooks", "_state_dict_hooks"])
def test_code_in_the_state_of_a_module_is_refused(where):
    module = rnnext.RNN(3, 4)
    getattr(module, where)[0] = print  # what a hostile file would have in its place
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print|print"):
        through_a_file(module)


def model():
    return nn.Sequential(nn.Embedding(7, 3), nn.RNN(3, 4, 2, bidirectional=True))


@pytest.mark.parametrize("way", ["torch", "safetensors"])
def test_from_torch_to_rnnext_through_a_file_and_back(way, tmp_path):
    """Trained with torch.nn, converted, saved, loaded by a converted model, and reverted."""
    theirs = model()
    expected = theirs(TOKENS)
    ours = rnnext.convert(copy.deepcopy(theirs))
    file = tmp_path / "model"
    again = rnnext.convert(model())
    if way == "torch":
        torch.save(ours.state_dict(), file)
        again.load_state_dict(torch.load(file, weights_only=True))
    else:
        safetensors = pytest.importorskip("safetensors.torch", reason="in the extra `test`")
        safetensors.save_model(ours, file)
        assert safetensors.load_model(again, file) == (set(), [])
        assert safetensors.load_file(file).keys() == theirs.state_dict().keys()
    assert_close(again(TOKENS), expected)
    rnnext.revert(again)
    assert same(again(TOKENS), expected)
    plain = model()
    plain.load_state_dict(ours.state_dict())
    assert same(plain(TOKENS), expected)


@parametrize_modules
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_the_module_for_any_batch_and_length(make, given):
    module = make().eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (given,)), file)
    file.seek(0)
    trace = torch.jit.load(file)
    more = torch.cat([given, given.flip(0), given])
    for x in (given, more):
        assert_close(flat(trace(x)), flat(module(x)))
    for each in (trace, module):
        sum(t.sum() for t in flat(each(more))).backward()
    assert_close([p.grad for p in trace.parameters()], [p.grad for p in module.parameters()])
