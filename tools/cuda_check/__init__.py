"""The use of a GPU machine that is there for ten minutes: docs/cuda-check.md."""
