"""A U-Net that grows: with layers along time or further inputs it begins by making what the smaller network made.

Singer et al. 2022, "Make-A-Video", sections 3.2 and 3.3: an image model gains pseudo-3D layers and is told the frame
rate, and the video model that comes of it gains channels for frames that are known. The spatial weights go on learning.
"""

from __future__ import annotations

import torch

from carrara.denoisers.unet3d import UNet3D, UNetConfig


@torch.no_grad()
def inflate(known: UNet3D, config: UNetConfig, seed: int = 0) -> UNet3D:
    """A network of `config` that begins as `known`: what it has more changes nothing at first. seed: of new weights.

    More may be layers along time (the identity), scalars that are told, and given channels (weights of zero). Raises
    ValueError where the two differ in anything else.
    """
    grown = UNet3D(config)
    grown.init_weights(seed)
    times, theirs = grown.time_parameters(), known.state_dict()
    missing = set(theirs)
    for name, parameter in grown.named_parameters():
        source = name if name in theirs else name.replace(".space.", ".")
        if source in theirs:
            values = theirs[source]
            missing.discard(source)
            if name.startswith("enter.") and parameter.ndim == 4 and len(values) == len(parameter):
                torch.nn.init.zeros_(parameter)
                parameter[:, : values.shape[1]] = values
                continue
            if values.shape != parameter.shape:
                raise ValueError(
                    f"{name}: {tuple(values.shape)} cannot become {tuple(parameter.shape)}; keep the sizes"
                )
            parameter.copy_(values)
        elif name.startswith("scalars."):
            torch.nn.init.zeros_(parameter)
        elif name not in times:
            raise ValueError(f"{name}: not in the network that is to grow; only time, scalars and channels may be new")
    if missing:
        raise ValueError(f"{min(missing)}: the larger network has no place for it")
    return grown
