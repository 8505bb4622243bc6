"""The compute of anything that runs on tensors, counted: what makes systems comparable at equal training.

Floating-point operations of matrix products, convolutions and attention, a multiplication and an addition being two,
as torch counts them; what lies between is left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """How many operations `run()` takes, and with parameters, those of the gradients of what it returns as well.

    It is run once, for real, outside of autocast: kernels for narrow types have names that torch's counter lacks.
    Nothing is left in the parameters.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(wanted)):
        made = run()
        if wanted:
            torch.autograd.grad(made, wanted, allow_unused=True)
    return int(counter.get_total_flops())
