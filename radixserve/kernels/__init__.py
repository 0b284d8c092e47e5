"""What computes: attention over slots, and everything of a decoder layer that is compiled here.

`attention` says how attention is called, `step` what it needs to know of one step. `cpu` and `cuda`
are the implementations. Knows tensors, slots and positions; knows no model and no request.
"""
