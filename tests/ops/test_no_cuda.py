"""What the ops say on a GPU where only the CPU half was built."""

import pytest
import torch

import rnnext
from helpers import samples

ops = torch.ops.rnnext
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CALL = samples.make()
GRADIENT = torch.zeros(3, 4)
INDICES = torch.zeros(3, dtype=torch.int64)
CALLS = {
    "recurrence": (*vars(CALL).values(), False),
    "recurrence_backward": (None, None, CALL.input, [], *vars(CALL).values(), [True] * 7),
    "embedding": (GRADIENT, INDICES),
    "embedding_backward": (GRADIENT, INDICES, 5, -1, False),
    "embedding_sparse_backward": (GRADIENT, INDICES, 5, -1, False),
}


@pytest.mark.skipif(bool(rnnext._C.build_info()["cuda_archs"]), reason="the CUDA half was built")
def test_a_build_without_cuda_kernels_says_so_and_how_to_have_them():
    for name, arguments in CALLS.items():
        message = f"rnnext::{name} got tensors on a GPU, but .* no CUDA kernels.*RNNEXT_CUDA=1 pip"
        with pytest.raises(NotImplementedError, match=message):
            # As the dispatcher calls it for tensors on a GPU, which no CPU build of torch can make.
            getattr(ops, name).default.redispatch(CUDA, *arguments)
