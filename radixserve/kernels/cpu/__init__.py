"""The kernels of the CPU, compiled by numba and LLVM, and the program that calls them.

`gemm` and `attention` have folders; all other modules serve both, or the rest of a layer (`rows`).
docs/ARCHITECTURE.md draws a panel, a tile and the program of a step.
"""
