"""What a model of the Wan family is made for: its task, how it reads an image, its experts, and what it makes unasked.

Descriptions alone: nothing here loads or runs anything. The facts are those of the public repositories of Wan 2.1 and
2.2 (technical report: arXiv:2503.20314) and of the folders that diffusers reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # names of types only: the modules that make systems import this file
    from carrara.autoencoders.video import VideoAutoencoder
    from carrara.denoisers.dit import DiT
    from carrara.systems.image_tower import ImageTower
    from carrara.systems.latent import Defaults
    from carrara.systems.offload import StagedTextEncoder
    from carrara.systems.refiner import Refiner
    from carrara.text.encoder import TextEncoder
    from carrara.text.tokenizer import Tokenizer

Task = Literal["t2v", "i2v", "flf2v", "ti2v"]

# The released models were tuned against this text as the unconditional side (Wan's configuration of all of them).
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class ModelKind:
    """One kind of model; the defaults are Wan 2.1's from text at 480p.

    family, size: as released ("Wan 2.1", "1.3B"); size is "" where nobody released a model of these sizes;
    task: t2v makes a clip of a text; i2v of a text and its first frame, whose latents and mask are concatenated to the
    noise as 20 more channels; flf2v of a last frame too; ti2v of a text, and of a first frame where one is given, held
    as the first latent frame;
    boundary: with two experts, the noise level in [0, 1] from which on (t >= boundary) the high-noise one is asked;
    expand_timesteps: every token has its own level, 0 where its latents are known (ti2v);
    image_tower: the transformer also reads the first frame through CLIP's image tower (i2v of Wan 2.1);
    guidance, low_guidance: guidance scales, the second of the low-noise expert where it differs.
    """

    family: str = "Wan 2.1"
    task: Task = "t2v"
    size: str = ""
    boundary: float | None = None
    expand_timesteps: bool = False
    image_tower: bool = False
    frames: int = 81
    width: int = 832
    height: int = 480
    fps: float = 16.0
    steps: int = 50
    guidance: float = 5.0
    low_guidance: float | None = None
    shift: float = 5.0
    negative: str = ""

    @property
    def experts(self) -> int:
        """How many transformers share the noise levels."""
        return 1 if self.boundary is None else 2

    @property
    def concatenates(self) -> bool:
        """Whether latents are entered with a mask and the known frame as more channels."""
        return self.task in ("i2v", "flf2v")

    def __str__(self) -> str:
        return " ".join(word for word in (self.family, self.task.upper(), self.size or "(a size of its own)") if word)


T2V_1_3B = ModelKind(size="1.3B", negative=WAN_NEGATIVE)
T2V_14B = ModelKind(size="14B", width=1280, height=720, negative=WAN_NEGATIVE)
I2V_14B = ModelKind(task="i2v", size="14B", image_tower=True, steps=40, shift=3.0, negative=WAN_NEGATIVE)
FLF2V_14B = ModelKind(
    task="flf2v", size="14B", image_tower=True, width=1280, height=720, shift=16.0, negative=f"镜头切换，{WAN_NEGATIVE}"
)
TI2V_5B = ModelKind(
    "Wan 2.2", "ti2v", "5B", expand_timesteps=True, frames=121, width=1280, height=704, fps=24.0, negative=WAN_NEGATIVE
)
T2V_A14B = ModelKind(
    "Wan 2.2",
    "t2v",
    "A14B",
    boundary=0.875,
    width=1280,
    height=720,
    steps=40,
    guidance=4.0,
    low_guidance=3.0,
    shift=12.0,
    negative=WAN_NEGATIVE,
)
I2V_A14B = ModelKind(
    "Wan 2.2",
    "i2v",
    "A14B",
    boundary=0.9,
    width=1280,
    height=720,
    steps=40,
    guidance=3.5,
    low_guidance=3.5,
    negative=WAN_NEGATIVE,
)
RELEASED = (T2V_1_3B, T2V_14B, I2V_14B, FLF2V_14B, TI2V_5B, T2V_A14B, I2V_A14B)


@dataclass(frozen=True)
class Parts:
    """What a model folder of either layout holds, loaded, in evaluation mode, without gradients.

    denoiser: the only transformer, or the expert of high noise; low_denoiser: the expert of low noise, where there are
    two; image_tower: only where `kind.image_tower`; fingerprint: of every file whose bytes decide what is made;
    refiner: where the folder has one.
    """

    kind: ModelKind
    autoencoder: VideoAutoencoder
    denoiser: DiT
    low_denoiser: DiT | None
    text_encoder: TextEncoder | StagedTextEncoder
    tokenizer: Tokenizer
    image_tower: ImageTower | None
    defaults: Defaults
    fingerprint: str
    refiner: Refiner | None = None
