"""The reader of text in Make-A-Video: pairs are found, and the prior draws from the conditional distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from carrara.core.types import TextStates
from carrara.denoisers.prior import Prior, PriorConfig
from carrara.diffusion.fields import TimeDraw, draw_times
from carrara.systems.image_prior import draw_embeddings, prior_errors
from carrara.systems.latent import Sampling
from carrara.text.contrastive import Contrastive, ContrastiveConfig, contrastive_loss

SMALL = ContrastiveConfig(side=8, dim=8, levels=2, text_dim=6, embedding=8)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(config: ContrastiveConfig = SMALL) -> Contrastive:
    network = Contrastive(config)
    network.init_weights(0)
    return network


def test_the_loss_is_that_of_guessing_for_equal_vectors_and_none_for_certain_pairs():
    alike = F.normalize(draw(1, 8), dim=-1).expand(5, 8)
    assert float(contrastive_loss(alike, alike, 10.0)) == pytest.approx(math.log(5), abs=1e-5)
    apart = torch.eye(5, 8)
    assert float(contrastive_loss(apart, apart, 100.0)) < 1e-6
    assert float(contrastive_loss(apart, apart.roll(1, 0), 100.0)) > 50


def test_equal_captions_are_all_right_answers():
    """Two images of one caption: certainty of either is as good, and the least loss is that of not knowing which."""
    both = torch.eye(4, 8)[torch.tensor([0, 0, 1, 2])]
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[:2, :2] = True
    assert float(contrastive_loss(both, both, 100.0, same)) == pytest.approx(math.log(2) / 2, abs=1e-4)
    with pytest.raises(ValueError, match="one caption for each image"):
        contrastive_loss(both, both[:3], 1.0)


def test_training_finds_the_pairs_of_images_that_it_has_not_seen():
    """Captions name the colour and the half of the image in which it is: both must be read to find the pair."""
    network = made()
    kinds = torch.eye(6)  # one token: red, green or blue, above or below

    def pairs(step: int) -> tuple[torch.Tensor, TextStates]:
        kind = torch.arange(6)
        images = 0.2 * draw(6, 3, 8, 8, seed=step)
        for row, (colour, half) in enumerate(zip(kind % 3, kind // 3)):
            images[row, colour, 4 * half : 4 * half + 4] += 0.8
        return images, TextStates(kinds[:, None], torch.ones(6, dtype=torch.int64))

    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(30):
        images, text = pairs(step)
        loss = contrastive_loss(network.embed_images(images), network.embed_texts(text), network.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, text = pairs(10_000)
    with torch.no_grad():
        scores = network.embed_images(images) @ network.embed_texts(text).T
    assert scores.argmax(dim=1).equal(torch.arange(6))
    assert scores.argmax(dim=0).equal(torch.arange(6))


def test_embeddings_are_unit_vectors_of_any_size_of_image_and_pads_do_not_matter():
    network = made()
    image = draw(2, 3, 8, 8)
    vector = network.embed_images(image)
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(network.embed_images(image.repeat_interleave(3, 2).repeat_interleave(3, 3)), vector)
    states = draw(2, 3, 6)
    lengths = torch.tensor([3, 3])
    padded = TextStates(F.pad(states, (0, 0, 0, 4)), lengths)
    torch.testing.assert_close(network.embed_texts(padded), network.embed_texts(TextStates(states, lengths)))


def said(vector: torch.Tensor) -> TextStates:
    return TextStates(torch.ones(len(vector), 1, 2), torch.ones(len(vector), dtype=torch.int64))


def test_samples_of_a_gaussian_joint_have_the_mean_and_the_spread_of_the_conditional():
    """x = A y + noise: what is drawn for one y must be N(A y, spread^2), not the mean alone and not the marginal."""
    prior = Prior(PriorConfig(embedding=2, text_dim=2, dim=48, blocks=2))
    prior.init_weights(0)
    turn, spread = torch.tensor([[0.6, -0.5], [0.5, 0.6]]), 0.6
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    steps = 1200
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        y = torch.randn(256, 2, generator=generator)
        x = y @ turn.T + spread * torch.randn(256, 2, generator=generator)
        noise = torch.randn(256, 2, generator=generator)
        t = draw_times(256, generator, TimeDraw(uniform=1.0))
        loss = prior_errors(prior, x, noise, t, said(y), y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    sampling = Sampling(steps=100, guidance=1.0, sampler="ancestral", shift=1.0, grid="cosine")
    for y in (torch.tensor([1.0, -0.5]), torch.tensor([-1.2, 0.3])):
        near = y.expand(500, 2)
        generators = [torch.Generator().manual_seed(seed) for seed in range(500)]
        with torch.no_grad():
            drawn = draw_embeddings(prior, said(near), near, said(near), near, sampling, generators)
        assert (drawn.mean(0) - turn @ y).abs().max() < 0.12
        assert (drawn.std(0) / spread - 1).abs().max() < 0.15


def test_the_prior_begins_at_nothing_and_refuses_what_does_not_fit():
    config = PriorConfig(embedding=4, text_dim=2, dim=8, blocks=1)
    prior = Prior(config)
    prior.init_weights(0)
    x, t = draw(3, 4), torch.rand(3)
    assert prior(x, t, said(x), x).eq(0).all()
    with pytest.raises(ValueError, match=r"vector has shape \(3, 3\): expected \(3, 4\)"):
        prior(x, t, said(x), x[:, :3])
    with pytest.raises(ValueError, match="text states"):
        prior(x, t, said(x[:2]), x)
    with pytest.raises(ValueError, match="dim=7: must be even"):
        replace(config, dim=7)
    with pytest.raises(ValueError, match="side=30: must be a multiple of 4"):
        replace(SMALL, side=30)
