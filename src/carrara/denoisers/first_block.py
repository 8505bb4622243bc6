"""Skip most of the network where its first block says that little has changed since it last ran. An approximation.

From step to step of a sampler the change that the first block makes to the tokens moves much as the changes of all
blocks do. So the first block always runs; where its change differs from that of the last full evaluation by less than
a share `threshold`, the remaining blocks add what they added then. As in "first block cache" of ParaAttention, a
simplification of TeaCache (arXiv:2411.19108). What it costs in accuracy depends on the model: `benchmarks/inference.py`
measures it beside the time it saves.
"""

from __future__ import annotations

from torch import Tensor, nn

from carrara.core.types import Keyframes, TextStates
from carrara.denoisers.dit import DiT
from carrara.denoisers.dit_config import DiTConfig
from carrara.denoisers.text_keys import TextKeys


class FirstBlock(nn.Module):
    """A `DiT` that remembers its last full evaluation. One for every prompt and clip: it belongs to one trajectory.

    threshold: the relative change (mean magnitudes) up to which the rest is reused; 0 never does. 0.03 to 0.15 are
    usual. `asked` and `reused` count evaluations.
    """

    def __init__(self, denoiser: DiT, threshold: float) -> None:
        super().__init__()
        check_threshold(threshold)
        self.denoiser, self.threshold = denoiser, threshold
        self.asked = self.reused = 0
        self._last: tuple[Tensor, Tensor] | None = None  # what the first block added, and what the others did

    @property
    def config(self) -> DiTConfig:
        return self.denoiser.config

    def read_text(self, text: TextStates, image: Tensor | None = None) -> TextKeys:
        return self.denoiser.read_text(text, image)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: TextStates | TextKeys,
        keyframes: Keyframes | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """As `DiT.forward`."""
        tokens, known = self.denoiser.enter(x, t, text, keyframes, image)
        first = self.denoiser.through(tokens, known, stop=1)
        added = first - tokens
        self.asked += 1
        if self._last is not None and self._close(added, self._last[0]):
            self.reused += 1
            return self.denoiser.leave(first + self._last[1], known)
        after = self.denoiser.through(first, known, start=1)
        self._last = added.detach(), (after - first).detach()
        return self.denoiser.leave(after, known)

    def _close(self, now: Tensor, then: Tensor) -> bool:
        if now.shape != then.shape:
            return False
        return bool((now - then).abs().mean() < self.threshold * then.abs().mean())


def check_threshold(threshold: float) -> None:
    """Refuse what is no share of change."""
    if not 0 <= threshold < 1:
        raise ValueError(f"reuse={threshold}: expected 0 (never) to less than 1; 0.03 to 0.15 are usual")
