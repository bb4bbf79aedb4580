"""The ops again in plain PyTorch: slow, clear, differentiable, with the same signatures.

What a test calls the right answer: computed in the dtype of the arguments (give float64 for an
oracle).
"""

from reference.cells import GATES, STATES, recurrence
from reference.gather import embedding, embedding_backward, embedding_sparse_backward
from reference.philox import dropout_mask, normals, philox

__all__ = [
    "GATES",
    "STATES",
    "dropout_mask",
    "embedding",
    "embedding_backward",
    "embedding_sparse_backward",
    "normals",
    "philox",
    "recurrence",
]
