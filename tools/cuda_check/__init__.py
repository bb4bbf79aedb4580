"""What a GPU machine is used for when there is one for ten minutes: docs/cuda-check.md."""
