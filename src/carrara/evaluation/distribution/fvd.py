"""True FVD and its VideoMAE variant, where the user has the network's weights on disk; none come with Carrara.

A file with the state dict of I3D (safetensors, or a pickle that is read with `weights_only`) gives the features of FVD
(Unterthiner et al., arXiv 1812.01717): the 400 mean logits. A folder with a fine-tuned VideoMAE in the transformers
layout gives its pooled tokens, which see motion better (Ge et al., arXiv 2404.12391). TorchScript files are programs
and are refused. Clips keep their frame rate, and their first 16 frames count: say both beside a number, and the number
of clips, without which no FVD means anything.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from carrara.core.config import nearest, read_json
from carrara.evaluation.distribution.i3d import CLASSES, I3D, LEAST_FRAMES, SIDE, TABLE

Clip = Tensor | NDArray[np.uint8]


class Extractor(Protocol):
    """Clips uint8 `t h w 3` to features float64 `n d`; `name` is what a distance on them is called, `frames` how many
    of a clip's first ones count."""

    name: str
    frames: int

    def __call__(self, clips: Iterable[Clip], batch: int = 4) -> NDArray[np.float64]: ...


def check_asked(path: str | Path | None, parts: Iterable[str]) -> None:
    """Refuse a network that no part would use. Raises ValueError."""
    if path is not None and "fvd" not in parts:
        raise ValueError(
            f"--fvd {path}: only the part fvd uses it, and --only leaves that out; add it, or leave out --fvd"
        )


def load_extractor(path: str | Path) -> Extractor:
    """I3D from a file, VideoMAE from a folder. Raises ValueError for what is neither."""
    path = Path(path)
    if path.is_dir():
        return VideoMAEFeatures(path)
    if path.is_file():
        return I3DFeatures(path)
    raise ValueError(f"{path}: no such file or folder; expected I3D weights (a file) or a VideoMAE folder")


class I3DFeatures:
    """Mean Kinetics logits, 400 of them, of frames stretched to 224 x 224 as the first FVD did."""

    def __init__(self, path: Path, frames: int = 16) -> None:
        if frames < LEAST_FRAMES:
            raise ValueError(f"frames={frames}: I3D needs at least {LEAST_FRAMES}")
        self.name = "FVD (I3D)"
        self.frames = frames
        self.net = load_i3d(path)

    @torch.no_grad()
    def __call__(self, clips: Iterable[Clip], batch: int = 4) -> NDArray[np.float64]:
        rows = [self.net(self.pixels(video)).double() for video in _batches(clips, self.frames, batch)]
        return torch.cat(rows).numpy() if rows else np.zeros((0, CLASSES))

    def pixels(self, video: Tensor) -> Tensor:
        """uint8 `b t h w 3` to `b 3 t 224 224` in [-1, 1], stretched without antialiasing."""
        return resized(video, (SIDE, SIDE), antialias=False) * 2 - 1


class VideoMAEFeatures:
    """The normalised mean of the last tokens, which the classifier reads."""

    def __init__(self, folder: Path) -> None:
        self.name = "VideoMAE"
        self.model: Any = load_videomae(folder)  # what transformers says of its types does not hold
        config = self.model.config
        self.frames, self.side = int(config.num_frames), int(config.image_size)
        file = folder / "preprocessor_config.json"
        said = read_json(file) if file.is_file() else {}
        self.mean = torch.tensor(said.get("image_mean", (0.485, 0.456, 0.406)))  # of ImageNet, as it was trained
        self.std = torch.tensor(said.get("image_std", (0.229, 0.224, 0.225)))

    @torch.no_grad()
    def __call__(self, clips: Iterable[Clip], batch: int = 4) -> NDArray[np.float64]:
        rows = [self.features(video).double() for video in _batches(clips, self.frames, batch)]
        return torch.cat(rows).numpy() if rows else np.zeros((0, self.model.config.hidden_size))

    def pixels(self, video: Tensor) -> Tensor:
        """uint8 `b t h w 3` to what the network reads: shorter side to its size, the middle, standardised."""
        height, width = video.shape[2:4]
        scale = self.side / min(height, width)
        size = max(self.side, round(height * scale)), max(self.side, round(width * scale))
        video = resized(video, size, antialias=True)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        video = video[..., top : top + self.side, left : left + self.side]
        mean, std = (rearrange(value, "c -> c 1 1 1") for value in (self.mean, self.std))
        return rearrange((video - mean) / std, "b c t h w -> b t c h w")

    def features(self, video: Tensor) -> Tensor:
        tokens = self.model.videomae(pixel_values=self.pixels(video)).last_hidden_state
        return self.model.fc_norm(tokens.mean(1)) if self.model.fc_norm is not None else tokens[:, 0]


def load_i3d(path: Path) -> I3D:
    """I3D with the weights of a file, ready to measure. Raises ValueError that names the first misfit."""
    net = I3D()
    wanted = {TABLE.to_theirs(name): name for name in net.state_dict()}
    state = net.state_dict()
    found = {k: v for k, v in read_state_dict(path).items() if not k.endswith("num_batches_tracked")}  # of training
    for theirs, value in found.items():
        if theirs not in wanted:
            raise ValueError(f"{path}: unknown tensor {theirs!r}; {nearest(theirs, wanted)}")
        target = state[wanted[theirs]]
        if value.shape != target.shape:
            raise ValueError(f"{path}: {theirs!r} has shape {tuple(value.shape)}, I3D's is {tuple(target.shape)}")
        target.copy_(value)
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(f"{path}: tensor {missing[0]!r} is missing ({len(missing)} in all); is this I3D, RGB?")
    return net.eval().requires_grad_(False)


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file or of a pickled state dict. Raises ValueError; runs no code from the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist()):
                raise ValueError(
                    f"{path}: TorchScript, which is a program and not only weights; pass the network's state dict"
                )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: no weights that can be read safely ({line}); expected a state dict") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: {type(state).__name__}, not a state dict of names and tensors; save the bare one")
    return state


def load_videomae(folder: Path) -> Any:
    """A fine-tuned `VideoMAEForVideoClassification` from a local folder.

    Raises ValueError where it is another model or not whole.
    """
    about = read_json(folder / "config.json")
    if about.get("model_type") != "videomae":
        raise ValueError(f"{folder}: model_type={about.get('model_type')!r}, expected 'videomae'")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no safetensors; convert the weights first, other formats can hold code")
    from transformers import VideoMAEForVideoClassification

    load: Any = VideoMAEForVideoClassification.from_pretrained
    try:
        model, info = load(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: cannot be read ({str(error).strip().splitlines()[0]})") from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all); "
            "expected VideoMAE fine-tuned for classification, not the pretraining checkpoint"
        )
    return model.eval().requires_grad_(False)


def resized(video: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """uint8 `b t h w 3` to float `b 3 t h w` in [0, 1] of this size, bilinear."""
    frames = rearrange(video, "b t h w c -> (b t) c h w").float() / 255
    frames = interpolate(frames, size, mode="bilinear", antialias=antialias)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))


def _batches(clips: Iterable[Clip], frames: int, batch: int) -> Iterable[Tensor]:
    """The clips' first frames, uint8 `b t h w 3`. Raises ValueError for a clip that is too short or no clip."""

    def checked(video: Clip) -> Tensor:
        clip = torch.as_tensor(video)
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            raise ValueError(f"clip of {clip.dtype} {tuple(clip.shape)}: expected uint8 frames (t, h, w, 3)")
        if len(clip) < frames:
            raise ValueError(f"a clip of {len(clip)} frames: this network looks at {frames}; use longer clips")
        return clip[:frames]

    ready = map(checked, clips)
    while part := list(islice(ready, batch)):
        if len({clip.shape for clip in part}) > 1:
            raise ValueError("clips of different sizes; make them one size first")
        yield torch.stack(part)
