"""How far a result may lie from the exact one: as far as rounding can take it, and no further.

The reference runs in float64, and again with each of its operations, forward and backward, changed
as rounding changes it: by a unit of the tested precision times the sum of the magnitudes of the
terms. The change of a result is the scale of its error, also for sums that cancel, where a bound by
the result's size is too tight, and for states that forget, where a worst case explodes.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Half a unit in the last place of what is stored; of products in a lower precision, of a factor.
UNITS = {
    "float64": 2.0**-52,  # a whole one: float64 would swallow the half
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "medium": 2.0**-8,
    "high": 2.0**-16,
}
LEAST = {2.0**-11: 2.0**-24}  # what float16 cannot hold, which gradients may fall below
RUNS, OF_FEW = 2, 8  # runs, and where a result has few numbers, whose changes may all cancel in two
FEW = 3
FACTOR = 12.0  # of the largest change in those runs; rounding came to a third of that
SPREAD = 3**0.5  # of changes in units, so that their mean square is that of whole ones
NEAR = 4.0  # units, times the largest value: so near zero rounding may take a relu across its kink

ELEMENTWISE = {
    "add", "add_", "sub", "rsub", "mul", "div", "tanh", "tanh_backward", "sigmoid",
    "sigmoid_backward", "softplus", "softplus_backward",
}  # fmt: skip


class Rounding(TorchDispatchMode):
    """Changes the result of each operation as rounding with this unit may change it."""

    def __init__(self, unit, seed):
        super().__init__()
        self.unit, self.numbers = unit, torch.Generator().manual_seed(seed)
        self.kinked = False  # whether a relu had a value that may be on either side of zero

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result, name = function(*args, **kwargs), function.overloadpacket.__name__
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        if name == "relu" and result.numel():
            x = args[0].abs()
            self.kinked |= bool(((x > 0) & (x < NEAR * self.unit * x.max())).any())
        if name in ("mm", "bmm"):
            magnitude = args[0].abs() @ args[1].abs()
        elif name == "addmm":
            magnitude = args[0].abs() + args[1].abs() @ args[2].abs()
        elif name in ("sum", "embedding_dense_backward"):
            magnitude = function(args[0].abs(), *args[1:], **kwargs)
        elif name in ELEMENTWISE:
            magnitude = result.abs()
        else:
            return result
        change = torch.empty_like(result).uniform_(-SPREAD, SPREAD, generator=self.numbers)
        return result.addcmul_(magnitude, change, value=self.unit)


class Expected:
    """The exact results of a reference, and how far each may be missed.

    ``run`` gives them from new leaves each time: first values, then gradients, None where a result
    does not depend on a leaf.
    """

    def __init__(self, run, unit):
        self.exact, changed, self.kinked = run(), [], False
        few = any(e is not None and 0 < e.numel() <= FEW for e in self.exact)
        for seed in range(OF_FEW if few else RUNS):
            with Rounding(unit, seed) as mode:
                changed.append(run())
            self.kinked |= mode.kinked
        self.bounds = [
            None if e is None or not e.numel() else self.bound(e, others, unit)
            for e, *others in zip(self.exact, *changed, strict=True)
        ]

    @staticmethod
    def bound(exact, others, unit):
        largest = max(float((other - exact).abs().max()) for other in others)
        return FACTOR * (largest + LEAST.get(unit, 0.0)) + 2 * unit * float(exact.abs().max())

    def check(self, found, values):
        """Raise AssertionError for a result that is too far off. (No gradient counts as zeros.)

        The first `values` results are values.
        """
        for i, (actual, exact, bound) in enumerate(
            zip(found, self.exact, self.bounds, strict=True)
        ):
            what = f"value {i}" if i < values else f"gradient {i - values}"
            if actual is None or exact is None:
                assert all(v is None or not v.any() for v in (actual, exact)), f"{what} is missing"
                continue
            assert actual.shape == exact.shape, f"{what} has shape {list(actual.shape)}"
            if bound is None or (self.kinked and i >= values):
                continue
            error = float((actual.double() - exact).abs().max())
            assert error <= bound, f"{what} is off by {error}, more than {bound}"  # also of NaN
