"""The tensors that model, tiers, store and sampling share: K/V in slots, copies between the device
and the host, and how much K/V a byte budget holds.

Knows nothing of models and requests.
"""
