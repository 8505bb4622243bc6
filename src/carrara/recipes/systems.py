"""Which systems stand on the scoreboard: each a recipe that takes a budget, and what it must have to be that system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from carrara.core.types import VideoShape
from carrara.denoisers.dit import DiTConfig
from carrara.denoisers.unet3d import NO_TIME, UNetConfig
from carrara.recipes.make_a_video import PHASES, MakeAVideoRecipe, make_a_video, make_a_video_tiny
from carrara.recipes.pond import PondRecipe, pond, pond_tiny
from carrara.recipes.pond_unlabelled import Rates
from carrara.recipes.runs import seeded
from carrara.recipes.vdm import VDMRecipe, vdm, vdm_tiny
from carrara.systems.vdm import VDMSettings

BASE_SHARE = 0.75  # of a VDM's compute; the rest is for its fine stage


@dataclass(frozen=True)
class System:
    """A row. recipe: its name for `carrara train`; stages: those that its compute must be of; alone: every frame of its
    clips is made alone."""

    title: str
    recipe: str
    page: str
    paper: str
    about: str
    stages: tuple[str, ...]
    alone: bool = False


SYSTEMS: Mapping[str, System] = {
    "vdm": System(
        "Video Diffusion Models",
        "vdm",
        "systems/vdm.py",
        "Ho et al. 2022, arXiv:2204.03458",
        "a space-time U-Net on pixels, extension and super-resolution by reconstruction guidance",
        ("base", "fine"),
    ),
    "make-a-video": System(
        "Make-A-Video",
        "make-a-video",
        "systems/make_a_video.py",
        "Singer et al. 2022, arXiv:2209.14792",
        "a prior from text to an image's embedding, and four stages that learn from clips without captions",
        PHASES,
    ),
    "latent": System(
        "latent system",
        "pond",
        "systems/latent.py",
        "Rombach et al. 2022, arXiv:2112.10752; Wan 2025, arXiv:2503.20314",
        "a causal autoencoder and a transformer, the architecture of the bundled model",
        ("denoiser",),
    ),
    "image": System(
        "images, frame by frame",
        "vdm",
        "generation/baseline.py",
        "none: the floor",
        "a model of single images, every frame of a clip made alone",
        ("base",),
        alone=True,
    ),
}


@dataclass(frozen=True)
class Contest:
    """What is compared: the systems' recipes, at one clip shape and rate."""

    vdm: VDMRecipe
    make_a_video: MakeAVideoRecipe
    latent: PondRecipe
    image: VDMRecipe
    shape: VideoShape
    fps: float

    def __post_init__(self) -> None:
        for name in ("vdm", "make_a_video", "image"):
            if data := getattr(self, name).data:
                raise ValueError(f"{name}.data={data!r}: systems are compared on the same world, the pond")
        if self.vdm.only_base:
            raise ValueError("vdm.only_base: its stage fine is missing; a VDM is compared whole")
        if self.make_a_video.until != PHASES[-1]:
            missing = ", ".join(PHASES[PHASES.index(self.make_a_video.until) + 1 :])
            raise ValueError(
                f"make_a_video.until={self.make_a_video.until!r}: {missing} are missing; it is compared whole"
            )

    def recipe(self, row: str, flops: float, seed: int) -> VDMRecipe | MakeAVideoRecipe | PondRecipe:
        """A row's recipe for a training of so much compute."""
        if row == "vdm":
            base, fine = replace(self.vdm.base, flops=BASE_SHARE * flops), self.vdm.fine
            return seeded(replace(self.vdm, base=base, fine=replace(fine, flops=(1 - BASE_SHARE) * flops)), seed)
        if row == "make-a-video":
            return seeded(replace(self.make_a_video, flops=flops), seed)
        if row == "latent":
            return seeded(replace(self.latent, denoiser=replace(self.latent.denoiser, flops=flops)), seed)
        return seeded(replace(self.image, base=replace(self.image.base, flops=flops)), seed)


def listing() -> str:
    """The systems, a line each, for whoever has no table yet."""
    lines = [
        f"{name:<13} {s.about}\n{'':<13} {s.paper}; {s.page}; carrara train {s.recipe}" for name, s in SYSTEMS.items()
    ]
    return "\n".join([*lines, "", "the table of all of them: carrara systems --run DIR --flops 1e15"])


def contest() -> Contest:
    """All systems whole, at the latent system's clip: 17 frames of 64 x 64 at 8 per second.

    A VDM makes just that of 9 frames of 32 x 32 at 4; Make-A-Video twice the sides. The image model is a VDM's base of
    one frame, at full size, without layers along time.
    """
    small = pond()
    whole, fine = vdm(), VDMSettings(frames=9, overlap=4, fine_frames=9, time=2)
    still = UNetConfig(blocks=1, temporal=NO_TIME, attention=(1, 2))
    return Contest(
        replace(
            whole,
            base=replace(whole.base, frames=9, fps=4.0, span=9),
            fine=replace(whole.fine, fps=8.0, span=17),
            settings=fine,
        ),
        replace(make_a_video(), rates=Rates(curriculum=500)),
        replace(small, denoiser=replace(small.denoiser, clips=24_000)),
        replace(
            whole,
            base=replace(whole.base, network=still, frames=1, height=64, width=64, batch=32, images=0),
            settings=VDMSettings(frames=1, overlap=1),
            only_base=True,
        ),
        small.shape,
        small.fps,
    )


def contest_tiny() -> Contest:
    """The same in seconds: nets too small to learn anything, at 5 frames of 32 x 32."""
    whole, small = vdm_tiny(), pond_tiny()
    denoiser = replace(small.denoiser, batch=8, model=DiTConfig(heads=4, head_dim=32, layers=2, ffn_dim=256))
    return Contest(
        replace(
            whole,
            base=replace(whole.base, frames=3, fps=4.0),
            fine=replace(whole.fine, frames=3, fps=8.0, span=5),
            settings=VDMSettings(frames=3, overlap=1, fine_frames=3, time=2, fine_steps=2),
        ),
        make_a_video_tiny(),
        replace(small, denoiser=denoiser),
        replace(
            whole,
            base=replace(
                whole.base,
                network=replace(whole.base.network, temporal=NO_TIME),
                frames=1,
                height=32,
                width=32,
                images=0,
            ),
            settings=VDMSettings(frames=1, overlap=1),
            only_base=True,
        ),
        small.shape,
        small.fps,
    )
