"""``python -m rnnext``: what a bug report needs to say of this build and machine."""

import platform

import torch

import rnnext
from rnnext import _C


def main() -> None:
    build = _C.build_info()
    rows = {
        "rnnext": rnnext.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (built against {build['torch']})",
        "compiler": build["compiler"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "CPU ISAs built": ", ".join(build["isas"]),
        "CPU ISAs of this CPU": ", ".join(build["isas_supported"]),
        "CPU ISA in use": _C.cpu_isa(),
        "CUDA archs": build["cuda_archs"] or "not built",
    }
    for name, value in rows.items():
        print(f"{name:22}{value}")


if __name__ == "__main__":
    main()
