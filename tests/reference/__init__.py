"""The ops again in plain PyTorch: slow, clear, differentiable, with the same signatures.

What a test calls the right answer, in the dtype of the arguments (give float64 for an oracle).
"""

from reference.cells import GATES, STATES, recurrence  # noqa: F401
from reference.gather import embedding, embedding_backward, embedding_sparse_backward  # noqa: F401
from reference.philox import dropout_mask, normals, philox  # noqa: F401
