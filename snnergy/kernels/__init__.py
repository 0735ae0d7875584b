"""LIF kernels for CPU (numba) and GPU (Triton)."""
