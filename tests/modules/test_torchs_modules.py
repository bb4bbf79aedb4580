"""The inputs of torch's own tests of its modules, right and wrong, given to rnnext's."""

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_close, error_of, pair
from helpers.modules import results

with pytest.MonkeyPatch.context() as patch:
    # Its import would forbid the whole process to set torch.backends' flags.
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    from torch.testing._internal import common_modules

LAYERS, CELLS = (nn.RNN, nn.GRU, nn.LSTM), (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
INFOS = [i for i in common_modules.module_db if i.module_cls in (*LAYERS, *CELLS, nn.Embedding)]


def cases(info, dtype, training):
    """torch's module, ours with its weights, and what to call them with."""
    options = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    for each in info.module_inputs_func(info, **options):
        made = each.constructor_input
        if made.kwargs.get("proj_size"):  # which rnnext refuses
            continue
        both = pair(info.module_cls.__name__, *made.args, **made.kwargs)
        theirs, ours = (module.to(dtype).train(training) for module in both)
        ours.load_state_dict(theirs.state_dict())
        assert repr(ours) == repr(theirs)
        yield theirs, ours, each.forward_input.args


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
@pytest.mark.parametrize(("dtype", "training"), [(torch.float64, True), (torch.float32, False)])
def test_results_of_torchs_inputs(info, dtype, training):
    for theirs, ours, given in cases(info, dtype, training):
        assert_close(results(ours, *given), results(theirs, *given))


@pytest.mark.parametrize("info", [i for i in INFOS if i.module_cls is not nn.Embedding])
def test_errors_of_torchs_wrong_inputs(info):
    """(Constructor and call, whichever raises.)"""
    options = {"device": "cpu", "dtype": torch.float32, "requires_grad": False, "training": True}
    for each in info.module_error_inputs_func(info, **options):
        wrong = each.module_error_input

        def call(kind, made=wrong.constructor_input, given=wrong.forward_input):
            kind(*made.args, **made.kwargs)(*given.args, **given.kwargs)

        ours = getattr(rnnext, info.module_cls.__name__)
        assert error_of(call, ours) == error_of(call, info.module_cls)
