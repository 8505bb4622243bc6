"""Which device a recipe runs on."""

from __future__ import annotations

from carrara.core import devices
from carrara.training.parallel import use_own_gpu


def chosen_device(name: str) -> str:
    """As `core.devices.chosen_device`; of several processes each has its own GPU."""
    device = devices.chosen_device(name)
    if device == "cuda":
        use_own_gpu()
    return device
