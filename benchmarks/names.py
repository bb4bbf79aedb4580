"""The names under which rows and tables know those who take part."""

OURS, TORCH, COMPILED = "rnnext", "torch.nn", "torch.compile"
# Ours another way, in the same rounds as a row: no rivals.
FLOAT32 = "rnnext float32"  # beside bfloat16 and less than the highest precision
STEP_PATH = "rnnext step path"  # beside the CUDA kernels that keep the weights on the chip
OTHER_WAYS = (FLOAT32, STEP_PATH)
RIVALS = (TORCH, COMPILED, "onnxruntime", "openvino", "jax")
