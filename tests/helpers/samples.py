"""Arguments of the recurrence ops, made from a description."""

import torch


def make(
    T=5,
    B=3,
    I=4,  # noqa: E741
    H=6,
    source="features",
    reverse=(False,),
    nonlinearity="tanh",
    bias=True,
    h0=True,
    layout="contiguous",
    rows="full",
    dtype=torch.float64,
    index_dtype=torch.int64,
    vocabulary=9,
    requires_grad=False,
):
    """The arguments of ``torch.ops.rnnext.recurrence``, as a list in the order of its schema.

    ``rows`` is how long the sequences are: "full", "lengths" (0 among them), or "packed".
    ``layout`` is how the input lies in memory: "contiguous", "batch_first", "strided" (no unit
    stride) or "expanded" (every sequence reads the same memory).
    """
    D = len(reverse)
    width = I if source == "features" else D * H
    scale = H**-0.5

    def uniform(*shape, bound=1.0):
        return ((torch.rand(shape, dtype=torch.float64) * 2 - 1) * bound).to(dtype)

    lengths = batch_sizes = index = None
    shape = (T, B)
    if rows == "lengths":
        lengths = torch.tensor([[T, 0, T // 2 + 1][b % 3] for b in range(B)], dtype=torch.long)
    elif rows == "packed":
        row_lengths = sorted((max(1, T - 2 * b) for b in range(B)), reverse=True)
        batch_sizes = torch.tensor([sum(n > t for n in row_lengths) for t in range(T)])
        shape = (int(batch_sizes.sum()),)
    if source == "table":
        index = torch.randint(vocabulary, shape).to(index_dtype)
        shape = (vocabulary,)
    if layout == "batch_first" and len(shape) == 2:
        input = uniform(B, T, width).transpose(0, 1)
    elif layout == "strided":
        input = uniform(*shape, 2 * width)[..., ::2]
    elif layout == "expanded":
        input = uniform(*shape[:-1], 1, width).expand(*shape, width)
    else:
        input = uniform(*shape, width)
    weight_ih = [uniform(H, I, bound=scale) for _ in reverse] if source == "features" else []
    weight_hh = [uniform(H, H, bound=scale) for _ in reverse]
    bias_ih = [uniform(H, bound=scale) for _ in reverse] if bias else []
    bias_hh = [uniform(H, bound=scale) for _ in reverse] if bias else []
    if layout == "strided":
        weight_hh = [w.t() for w in weight_hh]
        weight_ih = [torch.cat([w, w], 1)[:, ::2] for w in weight_ih]
    state = uniform(D, B, H) if h0 else None
    if h0 and layout == "expanded":
        state = uniform(D, 1, H).expand(D, B, H)
    arguments = [
        input,
        index,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        state,
        lengths,
        batch_sizes,
        nonlinearity,
        list(reverse),
    ]
    for tensor in float_tensors(arguments):
        tensor.requires_grad_(requires_grad)
    return arguments


def float_tensors(arguments):
    """The tensors among the arguments that can have a gradient, in order."""
    flat = [v for a in arguments for v in (a if isinstance(a, list) else [a])]
    return [v for v in flat if isinstance(v, torch.Tensor) and v.is_floating_point()]


def to_double(arguments):
    """The same arguments in float64, for the reference; new leaves if they needed gradients."""

    def convert(value):
        if isinstance(value, list):
            return [convert(v) for v in value]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        return value

    return [convert(a) for a in arguments]


def with_tensors(arguments, tensors):
    """The arguments with :func:`float_tensors` of them replaced by these."""
    tensors = iter(tensors)

    def replace(value):
        if isinstance(value, list):
            return [replace(v) for v in value]
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return next(tensors) if floating else value

    return [replace(a) for a in arguments]


def make_stack(layers, **case):
    """The arguments of recurrence_stack, as a list in the order of its schema."""
    each = [make(**case)]
    case["I"] = each[0][3][0].size(0)
    each += [make(**{**case, "layout": "contiguous"}) for _ in range(layers - 1)]
    lists = [[tensor for layer in each for tensor in layer[place]] for place in range(2, 6)]
    h0 = None if each[0][6] is None else torch.cat([layer[6] for layer in each])
    return [each[0][0], *lists, h0, *each[0][7:10]]
