"""The device that a check runs on (RNNEXT_CHECK_DEVICE names it), and the ops on it.

On the CPU, checks of a GPU are rehearsed: what has no twin there has a stand-in here.
"""

import contextlib
import os

import torch

DEVICE = os.environ.get("RNNEXT_CHECK_DEVICE", "cuda")
ON_GPU = DEVICE != "cpu"

# The ways to allow TF32 in products, old and new. Once a new one is set, reading an old one raises.
TF32 = {
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "matmul.fp32_precision": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "backends.fp32_precision": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("high"),
}


def _as_a_process_begins():
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"  # the line before has set it


@contextlib.contextmanager
def tf32_by(setting):
    """TF32 in matrix products, allowed in one of these ways; then everything is as it was."""
    _as_a_process_begins()
    TF32[setting]()
    try:
        yield
    finally:
        _as_a_process_begins()


def cuda_paths(capability):
    """The words of RNNEXT_CUDA_PATH that a card of this capability can run."""
    known = {"step": (0, 0), "block": (8, 0), "grid": (8, 0), "cluster": (9, 0)}
    return [name for name, least in known.items() if capability >= least]


def device_paths():
    """The device's paths; in a rehearsal, an H100's.

    tools.cuda_check says which device it is: a process must not ask CUDA, then fork.
    """
    told = os.environ.get("RNNEXT_CHECK_CAPABILITY")
    if told or not ON_GPU:
        return cuda_paths(tuple(map(int, (told or "9.0").split("."))))
    return cuda_paths(torch.cuda.get_device_capability())


def new_stream():
    """A context in which calls go to a stream of their own."""
    return torch.cuda.stream(torch.cuda.Stream()) if ON_GPU else contextlib.nullcontext()


class Captured:
    """A call in a CUDA graph: replay() runs it again, into the tensors of `results`.

    The stand-in calls again, and copies.
    """

    def __init__(self, call):
        if not ON_GPU:
            self._call, self.results = call, [t.detach() for t in call()]
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.results = call()

    def replay(self):
        if ON_GPU:
            self._graph.replay()
            return
        for old, new in zip(self.results, self._call(), strict=True):
            old.copy_(new)
