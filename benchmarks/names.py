"""The names under which rows and tables know those who take part."""

OURS, TORCH, COMPILED = "rnnext", "torch.nn", "torch.compile"
FLOAT32 = "rnnext float32"  # ours, beside bfloat16 and less than the highest precision: no rival
RIVALS = (TORCH, COMPILED, "onnxruntime", "openvino", "jax")
