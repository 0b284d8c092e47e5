"""The kernels of the CPU, compiled by numba and LLVM, and the program that calls them.

docs/ARCHITECTURE.md draws a panel, a tile and the program of a step.
"""
