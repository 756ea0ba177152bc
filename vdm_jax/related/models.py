"""Records of the models beside the VDM that can be trained: they have its fields and methods."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import loss, pixels, timestep
from vdm_jax.gaussian import Gaussian
from vdm_jax.loss import ElboTerms
from vdm_jax.related import binomial, hierarchy
from vdm_jax.related.binomial import constant_erasure
from vdm_jax.related.hierarchy import Conditional
from vdm_jax.types import Images, Key, PerExample, Tensor


class HierarchicalVAE(NamedTuple):
    """A VAE (one latent) or Markovian hierarchical VAE with prior N(0, I)."""

    encoders: Sequence[Conditional]  # q(z_1|x), ..., q(z_L|z_{L-1})
    decoders: Sequence[Conditional]  # p(z_1|z_2), ..., p(z_{L-1}|z_L)
    likelihood: Conditional  # z_1 -> the Gaussian that p(x|z_1) is the density of, or discretises
    event_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]  # of the last latent
    levels: int | None
    words: str  # its name in reports

    @property
    def note(self) -> str:
        """The meaning of its terms, for reports."""
        return (
            "prior is what the last latent costs given the one before, diffusion the latents "
            "between; only the total compares with a VDM's"
        )

    def elbo(self, key: Key, images: Images | Tensor) -> ElboTerms:
        """Returns one sample of the bound: reconstruction, last latent's KL, the rest."""
        x = loss.to_data(images, self.levels)
        return self._terms(images, x, hierarchy.sample_latents(key, x, self.encoders))

    def elbo_by_keys(self, images: Images | Tensor, t: PerExample, keys: Key) -> ElboTerms:
        """Returns the same with the noise of one key per example, [batch]; it has no times."""
        depth = len(self.encoders)
        keys = jax.vmap(lambda key: jax.random.split(jax.random.split(key)[0], depth))(keys)
        x = loss.to_data(images, self.levels)
        latents = [x]
        for i, encode in enumerate(self.encoders):
            q = encode(latents[-1])
            normal = functools.partial(jax.random.normal, shape=q.mean.shape[1:])
            latents.append(q.at(jax.vmap(normal)(keys[:, i])))
        return self._terms(images, x, latents[1:])

    def _terms(self, images: Images | Tensor, x: Tensor, latents: Sequence[Tensor]) -> ElboTerms:
        def log_likelihood(z_1: Tensor) -> PerExample:
            p = self.likelihood(z_1)
            if self.levels is None:
                return loss.sum_event(p.log_prob(x))
            return loss.sum_event(pixels.log_prob(images, p.mean, jnp.log(p.var), self.levels))

        found = hierarchy.elbo(x, latents, self.encoders, self.decoders, log_likelihood)
        return ElboTerms(found.reconstruction, found.levels[-1], found.levels[:-1].sum(0))

    def sample(self, key: Key, n: int, num_steps: int | None = None) -> Images | Tensor:
        """Returns the most likely pixels given z_1, or its mean; the steps are its latents."""
        key_last, key_rest = jax.random.split(key)
        z_last = jax.random.normal(key_last, (n, *self.latent_shape))
        p: Gaussian = self.likelihood(hierarchy.ancestral(key_rest, z_last, self.decoders))
        if self.levels is None:
            return p.mean
        return pixels.decode(p.mean, jnp.log(jnp.broadcast_to(p.var, p.mean.shape)), self.levels)


class BinomialDiffusion(NamedTuple):
    """Diffusion of black-and-white images (`related.binomial`) with keep(t) = 1 - t."""

    denoise: binomial.Denoise  # (z_t in {-1, 1}, keep_t) -> logits of x = 1
    event_shape: tuple[int, ...]
    num_steps: int
    timesteps: timestep.Method = "antithetic"
    levels: int = 2

    @property
    def words(self) -> str:
        """The kind of model and its T, for reports."""
        return f"binomial diffusion, T = {self.num_steps}"

    @property
    def note(self) -> str:
        """The meaning of its terms, for reports."""
        return "the reconstruction is the last of the steps, and within diffusion"

    def elbo(self, key: Key, images: Images) -> ElboTerms:
        """Returns one sample of the bound, whose reconstruction is one of the steps."""
        key_t, key_u = jax.random.split(key)
        u = jax.random.uniform(key_u, jnp.shape(images))
        t = timestep.draw(key_t, len(images), self.timesteps)
        return binomial.elbo(images, u, t, self.denoise, constant_erasure, self.num_steps)

    def elbo_by_keys(self, images: Images, t: PerExample, keys: Key) -> ElboTerms:
        """Returns the same at given times, with the noise of one key per example, [batch]."""
        u = jax.vmap(lambda key: jax.random.uniform(key, self.event_shape))(keys)
        return binomial.elbo(images, u, t, self.denoise, constant_erasure, self.num_steps)

    def sample(self, key: Key, n: int, num_steps: int | None = None) -> Images:
        """Returns `n` ancestral samples, integers in {0, 1}."""
        shape, steps = (n, *self.event_shape), num_steps or self.num_steps
        return binomial.sample(key, self.denoise, constant_erasure, shape, steps)
