"""The kernels of CUDA devices, in Triton, and what captures them as graphs."""
