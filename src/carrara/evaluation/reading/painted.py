"""How an actor is painted inside its outline: what tells a small bird from a heart where the outlines hardly differ.

A template's picture is what the pond's painters make of its pose in the actor's colour. Not standard; the mean CIELAB
difference inside both masks is compared only between shapes whose outlines fit about equally well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from scipy import ndimage

from carrara.evaluation.reading.colours import Array
from carrara.evaluation.reading.silhouettes import BLUR, GRID, Templates, paint_labs, reframed, templates


def pictures(known: Templates, chosen: NDArray[np.int64], colour: str) -> tuple[Array, Array]:
    """Chosen templates as they are painted in a colour, in the frame of what is seen of them: CIELAB `m p 3`, and how
    much of each place is painted at all, `m p`."""
    whole = templates()
    base = chosen % len(whole.names)  # what is seen of a template stands behind all whole ones, in their order
    layers = np.stack([paint_labs(name.split()[0], colour) for name in whole.names[base].tolist()])
    shown = whole.shown[base].astype(np.float32)
    drawn = np.concatenate([np.einsum("mcp,mcd->mdp", shown, layers), shown.sum(axis=1, keepdims=True)], axis=1)
    scale = np.sqrt(known.areas[chosen] / whole.areas[base])
    middle = (known.centres[chosen] - whole.centres[base]) / np.sqrt(whole.areas[base])[:, None]
    seen = reframed(rearrange(drawn, "m d (h w) -> m d h w", h=GRID), middle, scale)
    there: NDArray[Any] = ndimage.gaussian_filter(seen, (0, 0, BLUR, BLUR))
    there = rearrange(there, "m d h w -> m (h w) d")
    paint = there[..., 3]
    return there[..., :3] / np.maximum(paint, 1e-3)[..., None], paint


def apart(labs: Array, masks: Array, known: Templates, chosen: NDArray[np.int64], colour: str) -> NDArray[np.float64]:
    """Mean CIELAB difference of each view, colours `m p 3` and mask `m p`, from the template chosen for it, `m`."""
    there, paint = pictures(known, chosen, colour)
    share = np.minimum(masks, paint)
    far = np.linalg.norm(labs - there, axis=-1)
    return (far * share).sum(axis=1) / np.maximum(share.sum(axis=1), 1e-6)
