"""Low-rank adapters: a linear layer keeps its weights, and a product of two thin matrices is added to what it makes.

    y = W x + b + s (up (down x)),    s = strength * alpha / rank

(LoRA, Hu et al. 2021, arXiv:2106.09685, equation 3). Not standard: an adapted layer is still that layer, with the same
parameters under the same names and the product of its own class; only its terms stand beside it, any number of them.
Who multiplies by a layer's weights without calling it (`nn/packing.py`, `layers.linear32`) adds the terms by
`with_terms`. Adapters come and go by replacing layers: nothing of the network knows of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class LowRank(nn.Module):
    """One term of one layer. down: `r i`; up: `o r`; bias: `(o,)` or None, scaled like the rest.

    alpha: what the scale is measured in, alpha / rank; strength: of the whole adapter, 0 leaves it out.
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float, bias: Tensor | None = None) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.alpha, self.strength = float(alpha), 1.0

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def scale(self) -> float:
        return self.strength * self.alpha / self.rank

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`... i` -> `... o`, computed in `dtype`, in which the layer itself computes."""
        thin = F.linear(x.to(dtype), self.down.to(dtype)) * self.scale
        made = F.linear(thin, self.up.to(dtype))
        return made if self.bias is None else made + (self.scale * self.bias).to(dtype)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """What the term adds to the layer's weight: `o i`, float32 (float64 for float64)."""
        wide = torch.promote_types(self.down.dtype, torch.float32)
        return self.scale * (self.up.to(wide) @ self.down.to(wide))


class AdaptedLinear(nn.Linear):
    """A linear layer with terms: its parameters are those of `layer`, whose place it takes."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make new parameters
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.kind = type(layer)
        self.terms = nn.ModuleList()
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.with_terms(x, self.kind.forward(self, x))

    def with_terms(self, x: Tensor, made: Tensor) -> Tensor:
        """What the layer alone made of x, plus what its terms make of it."""
        for term in self.own():
            if term.scale:
                made = made + term(x, made.dtype)
        return made

    def own(self) -> Iterator[LowRank]:
        """The terms, one for each adapter."""
        return (term for term in self.terms if isinstance(term, LowRank))

    def plain(self) -> nn.Linear:
        """The layer as it was: the same class, the same parameters."""
        with torch.device("meta"):
            layer = self.kind(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that does the same, in new parameters: added in float32, rounded to the weights' type."""
        layer = self.plain()
        layer.weight = nn.Parameter(add_deltas(self.weight, self.own()), self.weight.requires_grad)
        if self.bias is not None:
            layer.bias = nn.Parameter(add_biases(self.bias, self.own()), self.bias.requires_grad)
        return layer


def add_deltas(weight: Tensor, terms: Iterable[LowRank]) -> Tensor:
    """A weight with its terms' products added, in its own type."""
    added = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for term in terms:
        added += term.delta().to(added.device)
    return added.to(weight.dtype)


def add_biases(bias: Tensor, terms: Iterable[LowRank]) -> Tensor:
    """A bias with those of its terms added, in its own type."""
    added = bias.detach().to(torch.promote_types(bias.dtype, torch.float32), copy=True)
    for term in terms:
        if term.bias is not None:
            added += term.scale * term.bias.detach().to(added.device)
    return added.to(bias.dtype)


def with_terms(layer: nn.Linear, x: Tensor, made: Tensor) -> Tensor:
    """What `layer` makes of x, given what its weights alone made of it."""
    return layer.with_terms(x, made) if isinstance(layer, AdaptedLinear) else made


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Every layer that an adapter can be put on, by its name in the module."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def fresh(layers: Mapping[str, nn.Linear], rank: int, alpha: float, generator: Generator) -> dict[str, LowRank]:
    """Untrained terms for these layers, float32: `down` uniform in +-1 / sqrt(i), `up` 0: they add nothing.

    They lie on the generator's device. Raises ValueError for a rank that no such product has.
    """
    terms = {}
    for name, layer in layers.items():
        o, i = layer.out_features, layer.in_features
        if not 1 <= rank <= min(o, i):
            raise ValueError(f"rank={rank}: {name!r} is {o} x {i}; expected 1 to {min(o, i)}, 4 to 32 are usual")
        down = torch.empty(rank, i, device=generator.device).uniform_(-1, 1, generator=generator) / math.sqrt(i)
        terms[name] = LowRank(down, torch.zeros(o, rank, device=generator.device), alpha)
    return terms


def attach(module: nn.Module, terms: Mapping[str, LowRank]) -> None:
    """Put terms on the layers of these names; every further call adds to what is there.

    Raises ValueError, before anything is changed, where a term does not fit its layer.
    """
    layers = linear_layers(module)
    for name, term in terms.items():
        if name not in layers:
            raise ValueError(f"{name!r} is no linear layer of this network")
        wanted = (layers[name].out_features, layers[name].in_features)
        if (len(term.up), term.down.shape[1]) != wanted:
            found = (len(term.up), term.down.shape[1])
            raise ValueError(f"a term of {found[0]} x {found[1]} for {name!r}, which is {wanted[0]} x {wanted[1]}")
        if term.bias is not None and layers[name].bias is None:
            raise ValueError(f"a term with a bias for {name!r}, which has none")
    for name, term in terms.items():
        layer = layers[name]
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer)
            _replace(module, name, layer)
        layer.terms.append(term)


def detach(module: nn.Module) -> None:
    """Take all adapters off: the layers are what they were, to the bit."""
    for name, layer in adapted_layers(module).items():
        _replace(module, name, layer.plain())


def merge(module: nn.Module) -> None:
    """Add all adapters to the weights, in place of the old ones: the same network, as fast as without adapters."""
    for name, layer in adapted_layers(module).items():
        _replace(module, name, layer.merged())


def adapted_layers(module: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers that carry terms, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, AdaptedLinear)}


def _replace(module: nn.Module, name: str, layer: nn.Linear) -> None:
    *path, leaf = name.split(".")
    setattr(module.get_submodule(".".join(path)), leaf, layer)
