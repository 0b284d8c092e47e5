"""GEMM: rows times a packed weight. `call` chooses a kernel for a weight and runs it.

`panels` and `quantised` pack weights, `activations` prepares rows. `vectors` and `amx` are the
kernels, `block` their arguments; `panel_products` and `quantised_products` are their inner loops.
`lookup` reads rows back from a packed weight.
"""
