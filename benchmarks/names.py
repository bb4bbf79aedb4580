"""The names under which rows and tables know those who take part."""

OURS, TORCH, COMPILED = "rnnext", "torch.nn", "torch.compile"
RIVALS = (TORCH, COMPILED, "onnxruntime", "openvino", "jax")
