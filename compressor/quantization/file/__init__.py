"""The quantized file: small, aligned to the kernels, and checked."""
