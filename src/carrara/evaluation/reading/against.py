"""What of each shape can be seen against what is behind it: the edge of a blue fish at night is as dark as the sky.

An observed mask holds what differs from the picture behind, so a shape whose edge or tail hardly does is seen without
them, or with some of them, and is not like its whole silhouette. Where that is so, every template stands there twice:
whole, and as what is seen of it in the actor's colour, by the rules by which a mask is cut out (`masks`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from scipy import ndimage

from carrara.data.pond.shapes import BODY, EDGE
from carrara.evaluation.reading.colours import Array
from carrara.evaluation.reading.masks import CROSS, HIGH, LOW, fill_inside, reach
from carrara.evaluation.reading.silhouettes import (
    GRID,
    PAINTS,
    SPAN,
    Templates,
    blurred,
    paint_labs,
    plain_parts,
    plain_templates,
    reframed,
    templates,
)

STEP = 6.0  # CIELAB units to which what is behind an actor is rounded, so that few sets of templates are made
CELL = (2 * SPAN / (GRID - 1)) ** 2  # area of a sample, of a silhouette's


def templates_against(colour: str, behind: NDArray[np.float64]) -> tuple[Templates, Array]:
    """The templates of an actor of this colour in front of CIELAB `3`, and their plain parts `n p`."""
    ground = np.round(behind / STEP) * STEP
    edge = paint_labs("ball", colour)[PAINTS.index(EDGE)]
    if float(np.linalg.norm(edge - ground)) >= HIGH:
        return templates(), plain_templates(colour)
    return _both(colour, *ground.tolist())


@lru_cache(maxsize=32)
def _both(colour: str, *behind: float) -> tuple[Templates, Array]:
    whole = templates()
    seen, plains = seen_of(whole, colour, np.array(behind))
    return whole.beside(seen), np.concatenate([plain_templates(colour), plains])


def seen_of(whole: Templates, colour: str, behind: NDArray[np.float64]) -> tuple[Templates, Array]:
    """What is seen of whole templates in this colour in front of CIELAB `3`, and its plain parts `n p`."""
    kinds = np.array([name.split()[0] for name in whole.names.tolist()])
    shown = rearrange(whole.shown.astype(np.float32), "n c (h w) -> n c h w", h=GRID)
    soft, clear = np.empty((2, len(kinds), GRID, GRID), np.float32)
    for kind in np.unique(kinds):
        far = np.linalg.norm(paint_labs(kind, colour) - behind, axis=-1)
        for masks, high in ((soft, reach(float(far[PAINTS.index(BODY)]))), (clear, HIGH)):
            share = np.clip((far - LOW) / (high - LOW), 0, 1).astype(np.float32)
            masks[kinds == kind] = np.einsum("c,nchw->nhw", share, shown[kinds == kind])
    return normalised(whole, np.stack([cut_out(*pair) for pair in zip(soft, clear)]), plain_parts(colour))


def cut_out(soft: Array, clear: Array) -> Array:
    """A mask `h w` of what differs from what is behind, as an actor's is cut out: of the regions that differ clearly
    the largest, with its soft edge."""
    labels, count = ndimage.label(clear > 0.5, structure=CROSS)
    if count > 1:
        largest = labels == 1 + int(np.bincount(labels.reshape(-1))[1:].argmax())
        soft = soft * ndimage.binary_dilation(largest, structure=CROSS)
    return fill_inside(soft)


def normalised(whole: Templates, masks: Array, plains: Array) -> tuple[Templates, Array]:
    """Masks `n h w` in the frame of the whole silhouettes, and their plain parts, put into the frame of their own
    centroids and areas; all of them `n p`."""
    at = np.linspace(-SPAN, SPAN, GRID)
    share = np.maximum(masks.sum(axis=(1, 2)) * CELL, CELL)  # of the whole silhouette's area
    middle = np.stack([np.einsum("nhw,w->n", masks, at), np.einsum("nhw,h->n", masks, at)], axis=1)
    middle *= CELL / share[:, None]
    both = np.stack([masks, plains], axis=1).astype(np.float32)
    mask, plain = reframed(both, middle, np.sqrt(share)).swapaxes(0, 1)
    centres = whole.centres + middle * np.sqrt(whole.areas)[:, None]
    seen = Templates(blurred(mask), whole.shown, whole.names, whole.areas * share, whole.turns, centres)
    return seen, blurred(plain)
