"""Loads a transformers model and runs steps through it: packed linears, attention over slots,
logits.

Knows token ids, slots and tensors; knows no text, no HTTP and no scheduling. Importing this package
imports no torch; its modules do.
"""
