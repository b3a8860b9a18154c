"""One training over the processes that torchrun started: parts of every batch, gradients put together, rank 0 leads."""
