"""The tiers below the device, in which K/V is kept: host memory, and a folder on the disk. Knows
slots and tensors, no requests.

`contract` says what a tier is. `host` keeps what the device evicts, `disk` what was computed;
`engine.tiers` asks them in turn and knows the contract only.
"""

from __future__ import annotations

from typing import Final

DEVICE: Final = "device"
"""What metrics and usage call the device's own cache."""

DISK: Final = "disk"
NAMES: Final = ("host", DISK)
"""The tiers below the device, in the order in which they are asked."""
