"""A hierarchical VAE as something to be trained; a VDM can be seen as one."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import loss, pixels
from vdm_jax.gaussian import Gaussian
from vdm_jax.related import hierarchy
from vdm_jax.related.hierarchy import Conditional
from vdm_jax.train.model import BITS, NATS, Batch, Drawn, Params, Unit
from vdm_jax.types import Images, Key, PerExample, Tensor

__all__ = ["Conditionals", "HierarchicalModel"]


class Conditionals(NamedTuple):
    """The distributions of a hierarchy, with parameters and dropout closed over."""

    encoders: Sequence[Conditional]
    """q(z_1|x), ..., q(z_L|z_{L-1})."""
    decoders: Sequence[Conditional]
    """p(z_1|z_2), ..., p(z_{L-1}|z_L)."""
    likelihood: Callable[[Tensor], Gaussian]
    """z_1 -> the Gaussian that p(x|z_1) is the density of, or discretises: [batch, *event]."""


@dataclasses.dataclass(frozen=True)
class HierarchicalModel:
    """A VAE (depth 1) or Markovian hierarchical VAE, its prior N(0, I).

    The pixels' likelihood is that of a VDM: `pixels.log_prob` of the Gaussian that the last decoder
    gives; with `density` that Gaussian's density.

    Attributes:
      init: key -> parameters.
      bind: (parameters, conditioning, dropout key or None) -> `Conditionals`.
      event_shape: of one image.
      levels: the number of values of a pixel.
      depth: the number of latents.
      latent_shape: of the last of them.
      words: what reports call it.
      density: whether x is taken for continuous.
    """

    init: Callable[[Key], Params]
    bind: Callable[[Params, Tensor, Key | None], Conditionals]
    event_shape: tuple[int, ...]
    levels: int
    depth: int
    latent_shape: tuple[int, ...]
    words: str
    density: bool = False

    @property
    def unit(self) -> Unit:
        """Of the bound."""
        return NATS if self.density else BITS

    @property
    def note(self) -> str:
        """What its terms are."""
        return (
            "prior is what the last latent costs given the one before, diffusion the latents "
            "between; only the total compares with a VDM's"
        )

    def terms(
        self, params: Params, batch: Batch, key: Key, dropout: bool = False
    ) -> loss.ElboTerms:
        """One sample of the bound: reconstruction, the last latent's KL, and what is between."""
        key_elbo, key_dropout = jax.random.split(key)
        of = self.bind(params, batch["conditioning"], key_dropout if dropout else None)
        images = batch["images"]
        x = pixels.encode(images, self.levels)

        def log_likelihood(z_1: Tensor) -> PerExample:
            p = of.likelihood(z_1)
            if self.density:
                return loss.sum_event(p.log_prob(x))
            return loss.sum_event(pixels.log_prob(images, p.mean, jnp.log(p.var), self.levels))

        found = hierarchy.elbo(key_elbo, x, of.encoders, of.decoders, log_likelihood)
        return loss.ElboTerms(found.reconstruction, found.levels[-1], found.levels[:-1].sum(0))

    def drawn(self, params: Params, batch: Batch, u: PerExample, keys: jax.Array) -> Drawn:
        """The same, each image by its own key; the times play no part."""

        def one(image: Tensor, conditioning: Tensor, key: Key) -> loss.ElboTerms:
            single = {"images": image[None], "conditioning": conditioning[None]}
            return jax.tree.map(lambda term: term[0], self.terms(params, single, key))

        terms = jax.vmap(one)(batch["images"], batch["conditioning"], keys)
        return Drawn(terms, u, jnp.ones_like(u))

    def sample(self, params: Params, key: Key, conditioning: Tensor, num_steps: int) -> Images:
        """Integers in [0, levels), the most likely given z_1; the depth is the number of steps."""
        of = self.bind(params, conditioning, None)
        key_last, key_rest = jax.random.split(key)
        z_last = jax.random.normal(key_last, (len(conditioning), *self.latent_shape))
        p = of.likelihood(hierarchy.ancestral(key_rest, z_last, of.decoders))
        var = jnp.broadcast_to(p.var, p.mean.shape)
        return pixels.decode(p.mean, jnp.log(var), self.levels)
