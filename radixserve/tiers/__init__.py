"""Where K/V is kept beside the device: host memory, and a folder on the disk. Slots and tensors, no
requests.

`host` keeps what the device evicts, `disk` what was computed; `engine.tiers` decides when which of
them is asked.
"""
