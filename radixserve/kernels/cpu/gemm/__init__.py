"""GEMM: rows times a packed weight. `call` chooses a kernel for a weight and runs it.

`panels` packs weights of floats; `formats` says what codes are, `codes` packs them, `quantised`
finds them in floats, `decoding` decodes them. `activations` prepares rows. `vectors`, `integers`
and `amx` are the kernels, `block` their arguments; `panel_products` and `integer_products` are
their inner loops. `lookup` reads rows back from a packed weight, `grouped` multiplies by many.
"""
