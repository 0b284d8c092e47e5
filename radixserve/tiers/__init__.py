"""The tiers below the device, in which K/V is kept: host memory, and a folder on the disk. Knows
slots and tensors, no requests.

`host` keeps what the device evicts, `disk` what was computed; `engine.tiers` decides when which of
them is asked.
"""
