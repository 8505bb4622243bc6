"""Truth-aligned features: the head learns what the tokens show, and leaves nothing in the model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from carrara.core.types import VideoShape
from carrara.diffusion.fields import SHARES, FieldMix
from carrara.systems.alignment import Alignment, Content, ContentHead, outputs_of
from carrara.systems.latent import Sampling
from carrara.systems.phases import CaptionedLatents, DenoiserPhase

PROMPTS = ["a red ball bounces on the grass", "a green frog jumps over the pond"]
SIZES, MOMENTS = (3, 4), 2


def content(tokens: int, seed: int = 0) -> Content:
    """One actor with a cell of its own in each clip, none else."""
    generator = torch.Generator().manual_seed(seed)
    covered = torch.zeros(2, 2, tokens, MOMENTS)
    covered[:, 0, :3] = 0.5
    actors = torch.stack([torch.randint(size, (2, 2), generator=generator) for size in SIZES], dim=-1)
    actors[:, 1] = -1
    return Content(covered, actors, torch.tensor([[0], [1]]))


def head(dim: int, weight: float = 0.5, block: int = 1) -> ContentHead:
    return ContentHead(dim, SIZES, (2,), MOMENTS, Alignment(weight, block))


def batch(frames: int = 2) -> CaptionedLatents:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, 8, *shape, generator=torch.Generator().manual_seed(1))

    times = torch.tensor([[0.5, 1.0], [0.25, 1.0]])
    return CaptionedLatents(draw(frames, 4, 4), PROMPTS, draw(2, 4, 4), times, content(frames * 4))


def phase(small_system, content_head: ContentHead | None, mix: FieldMix | None = None) -> DenoiserPhase:
    system = copy.copy(small_system)
    system.denoiser = copy.deepcopy(system.denoiser).requires_grad_(True)
    system.text_encoder = copy.deepcopy(system.text_encoder).requires_grad_(True)
    sampling = Sampling(steps=2, guidance=2.0)
    shape = VideoShape(5, 64, 64)
    return DenoiserPhase(
        system, lambda step: batch(), batch(), mix or FieldMix(), sampling, PROMPTS, shape, content_head=content_head
    )


def test_the_loss_falls_to_the_entropy_of_what_is_there():
    """Features that name their clip and token can be read without error, but for cells that are covered in part."""
    tokens = 6
    features = torch.eye(2 * tokens, 16).reshape(2, tokens, 16)
    truth, reader = content(tokens), head(16)
    optimizer = torch.optim.Adam(reader.parameters(), lr=0.03)
    first = reader.loss(features, truth).item()
    for _ in range(150):
        optimizer.zero_grad()
        reader.loss(features, truth).backward()
        optimizer.step()
    entropy = 0.5 * math.log(2) / 4  # half of the cells are half covered: one of four parts, log 2 where it is open
    assert first > 3 * entropy
    assert reader.loss(features, truth).item() == pytest.approx(entropy, rel=0.1)


def test_labels_count_where_their_actor_is_seen():
    """Nothing is asked of an actor's labels where it covers nothing, of absent actors, and of labels that are -1."""
    tokens, reader = 6, head(16)
    features = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(0))
    truth = content(tokens)
    loss = reader.loss(features, truth)
    absent = Content(truth.covered, torch.where(truth.actors < 0, 2, truth.actors), truth.clip)
    assert reader.loss(features, absent).equal(loss)
    hidden = Content(torch.zeros_like(truth.covered), truth.actors, truth.clip)
    other = Content(torch.zeros_like(truth.covered), (truth.actors + 1).clamp(max=2), truth.clip)
    assert reader.loss(features, hidden).equal(reader.loss(features, other))
    untold = Content(truth.covered, torch.full_like(truth.actors, -1), truth.clip)
    assert reader.loss(features, untold).isfinite()
    assert reader.loss(features, untold) < loss


def test_tokens_behind_the_clips_own_are_not_asked():
    reader, truth = head(16), content(6)
    features = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(0))
    assert reader.loss(features, truth).equal(reader.loss(features[:, :6], truth))


@pytest.mark.parametrize("kind", ["equal", "independent", "keyframe", "region"])
def test_features_come_in_the_order_of_the_latents(small_system, kind):
    """Whatever groups the transformer makes of its tokens: a change in one latent token moves its own feature most."""
    shares = {**dict.fromkeys(SHARES, 0.0), kind: 1.0}
    trained = phase(small_system, head(32), FieldMix(**shares))
    seen = []
    trained.content_head.loss = lambda features, truth: seen.append(features) or features.sum()  # type: ignore[method-assign]
    given = batch()
    changed = given.latents.clone()
    changed[:, :, 1, 2:, :2] += 5  # token 2 of frame 1, in patches of 2 x 2: number 4 + 2
    for latents in (given.latents, changed):
        trained.loss(replace(given, latents=latents), 0, torch.Generator().manual_seed(3))
    moved = (seen[0] - seen[1]).norm(dim=-1)
    assert moved.shape[1] == 8 + (4 if kind == "keyframe" else 0)
    assert moved.argmax(dim=1).tolist() == [6, 6]


def test_the_head_is_trained_beside_the_model_and_left_out_of_it(small_system, tmp_path):
    plain, aligned = phase(small_system, None), phase(small_system, head(32))
    one, other = (p.loss(batch(), 0, torch.Generator().manual_seed(0)) for p in (plain, aligned))
    assert other["flow"].equal(one["loss"])  # it changes no draw and no prediction
    assert other["loss"].item() == pytest.approx(other["flow"].item() + 0.5 * other["content"].item())
    other["loss"].backward()
    assert all(parameter.grad is not None for parameter in aligned.content_head.parameters())
    assert not aligned.system.denoiser.blocks[0]._forward_hooks
    for name, trained in (("plain", plain), ("aligned", aligned)):
        trained.export(tmp_path / name)
    files = {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(tmp_path / "aligned") for path in (tmp_path / "aligned").rglob("*") if path.is_file()
    }
    for file in files:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "aligned" / file).read_bytes()


def test_only_blocks_up_to_the_chosen_one_are_moved(small_system):
    trained = phase(small_system, head(32, block=1))
    parts = trained.loss(batch(), 0, torch.Generator().manual_seed(0))
    parts["content"].backward()
    first, second = trained.system.denoiser.blocks
    assert any(p.grad is not None and bool(p.grad.any()) for p in first.parameters())
    assert all(p.grad is None for p in second.parameters())


def test_a_head_without_content_is_refused(small_system):
    with pytest.raises(ValueError, match="without content"):
        phase(small_system, head(32)).loss(replace(batch(), content=None), 0, torch.Generator())


def test_the_hook_leaves_with_its_context():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes"), outputs_of(layer) as kept:
        layer(layer(torch.zeros(1, 2)).new_zeros(1, 3))
    layer(torch.zeros(1, 2))
    assert len(kept) == 1


@pytest.mark.parametrize(("settings", "named"), [({"weight": -1}, "weight=-1"), ({"block": 0}, "block=0")])
def test_impossible_alignments_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Alignment(**settings)
