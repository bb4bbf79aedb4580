"""Features that nn.RNN lacks, against what people write instead."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import rnnext

from .bars import Bar
from .cases import MODES
from .compared import TWO_SIDES, Call, Row, Suite, at_most, bar, call_of, turns


def pass_of(
    forward: Any, x: Tensor, train: bool, parameters: Iterable[Tensor] | None = None, **options: Any
) -> Call:
    """A call, and in training the gradients of the input and the parameters, a module's own."""
    leaves = list(forward.parameters() if parameters is None else parameters)
    if x.is_floating_point():
        x = x.detach().requires_grad_(train)
        leaves.insert(0, x)
    return call_of(forward, (x,), leaves, train, **options)


def python_loop(leaky: rnnext.LeakyRNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rate form as it is written today: one input projection, then a step at a time."""
    w_ih, w_hh, b_ih, b_hh = leaky.parameters()
    drive = nn.functional.linear(x, w_ih, b_ih + b_hh)
    a, weight = leaky.alphas()[0], w_hh.t()
    state = x.new_zeros(x.shape[1], leaky.hidden_size)
    outputs = []
    for step in drive:
        state = (1 - a) * state + a * torch.tanh(torch.addmm(step, state, weight))
        outputs.append(state)
    return torch.stack(outputs), state.unsqueeze(0)


def split_and_pad(rnn: nn.Module, reset: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """nn.RNN over every episode as a row of its own, padded, and the rows put back."""
    T, B = reset.shape
    begins = reset.t().clone()
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    longest = int(torch.diff(starts, append=torch.tensor([T * B])).max())
    rows = x.transpose(0, 1).flatten(0, 1)
    picked = (starts + torch.arange(longest).unsqueeze(1)).clamp(max=T * B - 1).flatten()
    output, h_n = rnn(rows.index_select(0, picked).view(longest, len(starts), -1))
    episode = begins.flatten().cumsum(0) - 1
    back = (torch.arange(T * B) - starts[episode]) * len(starts) + episode
    rows = output.flatten(0, 1).index_select(0, back)
    return rows.view(B, T, -1).transpose(0, 1), h_n


def step_by_step(layer: nn.Module, done: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    """As CleanRL's get_states: a call for every step, states zeroed before it where an episode
    ended."""
    state, outputs = None, []
    for step, d in zip(x, done.float(), strict=True):
        if isinstance(state, tuple):
            state = tuple((1.0 - d).view(1, -1, 1) * s for s in state)
        elif state is not None:
            state = (1.0 - d).view(1, -1, 1) * state
        output, state = layer(step.unsqueeze(0), state)
        outputs.append(output)
    return torch.cat(outputs), state


def zipf(V: int, shape: tuple[int, int]) -> Tensor:
    weights = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    return torch.multinomial(weights, shape[0] * shape[1], replacement=True).view(shape)


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    torch.manual_seed(0)
    for mode in MODES:
        yield from leaks_and_resets(mode, mode == "train")
    many = "RNN with resets against nn.RNN over split and padded episodes, T=128 B=128 H=256"
    yield episodes(many, "RNN", (128, 128, 256, 256), split_and_pad)
    for name in ("RNN", "GRU", "LSTM"):
        few = f"{name} with resets against CleanRL's loop over nn.{name}, T=128 B=4 I=64 H=128"
        yield episodes(few, name, (128, 4, 64, 128), step_by_step)
    lengths = (200 * torch.rand(64, generator=torch.Generator().manual_seed(0)) ** 3).long() + 1
    x, mean = torch.randn(200, 64, 64), lengths.double().mean()
    for H in (64, 256):
        for mode in MODES:
            rnn, train = rnnext.RNN(64, H), mode == "train"
            what = f"RNN with lengths (mean {mean:.0f} of 200) against padding, B=64 H={H}, {mode}"
            ours, padded = pass_of(rnn, x, train, lengths=lengths), pass_of(rnn, x, train)
            yield Row(what, turns(ours, padded, mean.item() / 200, same=False))
    x, leaky = torch.randn(300, 32, 3), rnnext.LeakyRNN(3, 100, alpha=0.2)
    loop = pass_of(functools.partial(python_loop, leaky), x, True, leaky.parameters())
    what = "LeakyRNN against the Python loop, T=300 B=32 I=3 H=100, train"
    yield Row(what, turns(pass_of(leaky, x, True), loop))
    yield from peers()
    drops, plain = (rnnext.RNN(3, 100, 2, dropout=p) for p in (0.2, 0.0))
    for what, other in (("itself without", plain), ("nn.RNN's", nn.RNN(3, 100, 2, dropout=0.2))):
        row = f"Two layers with dropout against {what}, T=300 B=32 I=3 H=100, train"
        yield Row(row, turns(pass_of(drops, x, True), pass_of(other, x, True), same=False))
    for mode in MODES:
        yield from tokens(mode, mode == "train")
    step = torch.randn(1, 64)
    leaky_stepper = rnnext.Stepper(rnnext.LeakyRNN(64, 64, alpha=0.2))
    stepper = rnnext.Stepper(rnnext.RNN(64, 64))
    both = turns(lambda: [leaky_stepper(step)], lambda: [stepper(step)], same=False)
    yield Row("Stepper of a LeakyRNN against one of an RNN, H=64 B=1", both)


def leaks_and_resets(mode: str, train: bool) -> Iterator[Row]:
    for H in (64, 256):
        x, reset = torch.randn(100, 32, 64), torch.rand(100, 32) < 0.03
        rnn, size = rnnext.RNN(64, H), f"T=100 B=32 I=64 H={H}, {mode}"
        leaky, plain = rnnext.LeakyRNN(64, H, alpha=0.2), pass_of(rnn, x, train)
        leaks, resets = pass_of(leaky, x, train), pass_of(rnn, x, train, reset=reset)
        yield Row(f"LeakyRNN against RNN, {size}", turns(leaks, plain, same=False))
        yield Row(f"RNN with resets against without, {size}", turns(resets, plain, same=False))
    x, size = torch.randn(300, 32, 3), f"T=300 B=32 I=3 H=100, {mode}"
    for f, form in (("tanh", "rate"), ("relu", "voltage")):
        make = functools.partial(rnnext.LeakyRNN, 3, 100, nonlinearity=f, alpha=0.2, form=form)
        noisy, quiet = (pass_of(make(noise_std=std), x, train) for std in (0.1, 0.0))
        what = f"LeakyRNN with noise against without, {f} {form}, {size}"
        yield Row(what, turns(noisy, quiet, same=False))


def episodes(
    what: str, name: str, sizes: tuple[int, int, int, int], loop: Callable[..., Any]
) -> Row:
    """A layer of rnnext's in which episodes end, against a loop over torch.nn's of that name."""
    T, B, I, H = sizes  # noqa: E741
    x, reset = torch.randn(T, B, I), torch.rand(T, B) < 0.03
    ours, theirs = (getattr(modules, name)(I, H) for modules in (rnnext, nn))
    theirs.load_state_dict(ours.state_dict())
    # Where an episode is a row of its own, h_n has more rows: it is left out.
    own = pass_of(ours, x, True, h_n=False, reset=reset)
    loop = functools.partial(loop, theirs, reset)
    other = pass_of(loop, x, True, theirs.parameters(), h_n=False)
    return Row(f"{what}, train", turns(own, other))


def tokens(mode: str, train: bool) -> Iterator[Row]:
    for V in (384, 10_000):
        indices, module = zipf(V, (100, 32)), rnnext.EmbeddingRNN(V, 128, 128)
        for whose, layers in (
            ("nn.RNN(nn.Embedding)", (nn.Embedding(V, 128), nn.RNN(128, 128))),
            ("RNN(Embedding)", (rnnext.Embedding(V, 128), rnnext.RNN(128, 128))),
        ):
            two = nn.Sequential(*layers)
            for one, own in zip(two, (module.embedding, module.rnn), strict=True):
                one.load_state_dict(own.state_dict())
            what = f"EmbeddingRNN against {whose}, T=100 B=32 E=H=128 V={V}, {mode}"
            ours, other = pass_of(module, indices, train), pass_of(two, indices, train)
            yield Row(what, turns(ours, other))


def peers() -> Iterator[Row]:
    """Other libraries' own layers, where they are installed; ours takes over their weights."""
    I, H = 3, 100  # noqa: E741
    if importlib.util.find_spec("neuralrnn"):
        from neuralrnn.models.ctrnn.configuration_ctrnn import CTRNNConfig
        from neuralrnn.models.ctrnn.modeling_ctrnn import CTRNNModel

        modes = {"rate": "pre_activation", "voltage": "rate", "blend": "post_blend"}
        for form, mode in modes.items():
            config = CTRNNConfig(I, H, 1, alpha=0.2, activation="tanh", nonlinearity_mode=mode)
            model = CTRNNModel(config)
            states = functools.partial(_ctrnn, model, form == "voltage")
            yield _peer(f"neuralrnn's CTRNNModel ({mode})", form, model.input2h, model.h2h, states)
    if importlib.util.find_spec("nn4n"):
        from nn4n.layer import RecurrentLayer

        spec: dict[str, Any] = {"activation": "tanh", "dt": 20, "tau": 100, "init_state": "zero"}
        for name, inputs in (("in_struct", I), ("hid_struct", H)):
            spec[name] = {"input_dim": inputs, "output_dim": H, "weights": "uniform",
                          "biases": "uniform", "ei_mask": None,
                          "sparsity_mask": torch.ones(inputs, H),
                          "plasticity_mask": torch.ones(inputs, H)}  # fmt: skip
        layer = RecurrentLayer(spec)
        forward = lambda x: (layer(x), x.new_zeros(0))  # noqa: E731
        inputs, hidden = layer.input_layer, layer.hidden_layer
        yield _peer("nn4n's RecurrentLayer", "voltage", inputs, hidden, forward)


def _peer(what: str, form: str, inputs: Any, hidden: Any, forward: Any) -> Row:
    """inputs, hidden: what multiplies the input and the state, each with its weight and bias."""
    leaky = rnnext.LeakyRNN(3, hidden.weight.shape[0], alpha=0.2, form=form)
    parameters = [inputs.weight, hidden.weight, inputs.bias, hidden.bias]
    for ours, theirs in zip(leaky.parameters(), parameters, strict=True):
        ours.data.copy_(theirs)
    x = torch.randn(300, 32, 3)
    both = pass_of(leaky, x, True, h_n=False), pass_of(forward, x, True, parameters, h_n=False)
    what = f"LeakyRNN ({form}) against {what}, T=300 B=32 I=3 H=100, train"
    return Row(what, turns(*both))


def _ctrnn(model: Any, voltage: bool, x: Tensor) -> tuple[Tensor, Tensor]:
    state = model.init_state(x.shape[1])
    states = []
    for step in x:
        state = model.recurrence(step, state)
        states.append(torch.tanh(state) if voltage else state)
    return torch.stack(states), state.unsqueeze(0)


def _token_bars() -> Iterator[Bar]:
    for mode, needed in (("infer", 4), ("train", 3.5)):
        for whose, mean, least in (("nn.RNN(nn", needed, 1.5), ("RNN(Emb", 1.2, 1.0)):
            rows = f"EmbeddingRNN against {whose}*, {mode}"
            yield bar(rows, rows, mean, mean=True)
            yield bar(rows, rows, least)


SUITE = Suite(
    "features",
    rows,
    {"features": TWO_SIDES},
    (
        at_most("leak over none, H < 256", "LeakyRNN against RNN, *H=64*", 1.15),
        at_most("leak over none, H >= 256", "LeakyRNN against RNN, *H=256*", 1.05),
        at_most("noise over none, infer", "LeakyRNN with noise against*infer", 1.35),
        at_most("noise over none, train", "LeakyRNN with noise against*train", 1.15),
        at_most("dropout over none", "Two layers with dropout against itself*", 1.15),
        at_most("resets over none", "RNN with resets against without*", 1.05),
        bar("resets, against CleanRL's loop", "*CleanRL*", 8),
        bar("resets, against split episodes", "RNN with resets against nn.RNN*", 3),
        at_most("lengths, time over valid steps", "RNN with lengths*", 1.15),
        bar("leak, against the Python loop", "LeakyRNN against the Python loop*", 20),
        at_most("Stepper with a leak over without", "Stepper*", 1.3),
        *_token_bars(),
    ),
)
