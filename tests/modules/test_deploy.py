"""What TorchScript and the legacy ONNX exporter are told; dynamic quantization."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import rnnext
from helpers.common import same

REVERT = r"call rnnext\.revert\(model\) first, which makes it torch\.nn\."
CASES = [
    (rnnext.RNN(3, 4), torch.randn(5, 2, 3), rf"rnnext\.RNN: {REVERT}RNN, or use"),
    (rnnext.RNNCell(3, 4), torch.randn(2, 3), rf"rnnext\.RNNCell: {REVERT}RNNCell"),
    (rnnext.Embedding(7, 3), torch.randint(7, (5,)), rf"rnnext\.Embedding: {REVERT}Embedding"),
    (
        parametrizations.weight_norm(rnnext.RNN(3, 4), "weight_hh_l0"),
        torch.randn(5, 2, 3),
        rf"rnnext\.RNN: {REVERT}RNN",
    ),
    (
        rnnext.LeakyRNN(3, 4, alpha=0.5),
        torch.randn(5, 2, 3),
        r"rnnext\.LeakyRNN; torch\.nn has no such module: use",
    ),
    (
        rnnext.EmbeddingRNN(7, 3, 4),
        torch.randint(7, (5, 2)),
        r"rnnext\.EmbeddingRNN; torch\.nn has no such module: use",
    ),
]
parametrize_cases = pytest.mark.parametrize(
    ("module", "given", "message"), CASES, ids=lambda v: type(v).__name__
)


@parametrize_cases
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_says_what_to_do(module, given, message):
    for model in (module, nn.Sequential(nn.Sequential(module))):
        with pytest.raises(NotImplementedError, match=f"torch.jit.script cannot compile {message}"):
            torch.jit.script(model)


@parametrize_cases
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_legacy_exporter_says_what_to_do(module, given, message):
    for model in (module, nn.Sequential(module)):
        with pytest.raises(NotImplementedError, match=f"cannot export {message}"):
            torch.onnx.export(model, (given,), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_revert_it_scripts():
    model = nn.Sequential(rnnext.Embedding(7, 3), rnnext.RNN(3, 4))
    tokens = torch.randint(7, (5, 2))
    scripted = torch.jit.script(rnnext.revert(model))
    assert same(scripted(tokens), model(tokens))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_after_revert_it_is_quantized():
    model = nn.Sequential(rnnext.RNNCell(3, 4))
    kinds = []
    for each in (model, rnnext.revert(copy.deepcopy(model))):
        quantized = torch.ao.quantization.quantize_dynamic(each)
        assert quantized(torch.randn(2, 3)).shape == (2, 4)
        kinds.append(type(quantized[0]))
    assert kinds == [rnnext.RNNCell, torch.ao.nn.quantized.dynamic.RNNCell]
