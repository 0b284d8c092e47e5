"""Attention over slots. `call` runs a layer of a step, or gives it to a program.

`work` divides a step among threads, `block` passes it to compiled code. `kernel` is the walk over
tiles and the arithmetic in float32, `amx` that in bfloat16, with its `softmax`; `loads` reads K, V
and queries, K by `transpose`, into the scratch memory that `memory` describes.
"""
