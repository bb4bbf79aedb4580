"""Models and Steppers in files, and the other ways torch has to take them elsewhere."""

import copy
import pickle

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_close, steps
from helpers.modules import TOKENS, X, through_a_file


@pytest.mark.parametrize("where", ["_forward_hooks", "_backward_hooks", "_state_dict_hooks"])
def test_code_in_the_state_of_a_module_is_refused(where):
    module = rnnext.RNN(3, 4)
    getattr(module, where)[0] = print  # what a hostile file would have in its place
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print|print"):
        through_a_file(module)


def test_a_stepper_goes_on_where_it_was():
    stepper = rnnext.Stepper(rnnext.RNN(3, 4, 2), batch_size=2)
    steps(stepper, X)
    twin = through_a_file(stepper)
    assert torch.equal(twin.get_state(), stepper.get_state())
    assert torch.equal(steps(twin, X), steps(stepper, X))


def model():
    return nn.Sequential(nn.Embedding(7, 3), nn.RNN(3, 4, 2, bidirectional=True))


def test_torch_reads_the_weights_from_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="in the extra `test`")
    ours, theirs = rnnext.convert(model()), model()
    safetensors.save_model(ours, tmp_path / "model")
    assert safetensors.load_model(theirs, tmp_path / "model") == (set(), [])
    assert_close(ours(TOKENS), theirs(TOKENS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_after_revert_it_scripts_and_is_quantized():
    scripted = torch.jit.script(rnnext.revert(rnnext.convert(model())))
    assert scripted(TOKENS)[0].shape == (5, 2, 8)
    cell, kinds = nn.Sequential(rnnext.RNNCell(3, 4)), []
    for each in (cell, rnnext.revert(copy.deepcopy(cell))):
        quantized = torch.ao.quantization.quantize_dynamic(each)
        assert quantized(X[0]).shape == (2, 4)
        kinds.append(type(quantized[0]))
    assert kinds == [rnnext.RNNCell, torch.ao.nn.quantized.dynamic.RNNCell]
