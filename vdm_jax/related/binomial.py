"""Binomial diffusion of bits (Sohl-Dickstein et al. 2015, arXiv 1503.03585).

Each step of the forward process keeps a bit with probability 1 - beta_t and else replaces it by a
fair coin: q(z_t|z_s) = B(z_s (1 - beta_t) + beta_t / 2). The share of signal left after steps
1, ..., i is keep = prod (1 - beta_j), and everything here is a function of it.

A schedule is a callable t -> keep(t), strictly decreasing on [0, 1] with keep(0) = 1: z_0 is the
data itself. Bits are integers or floats in {0, 1} (others give NaN), data and latents
[batch, *event], and a value of keep is a scalar or [batch]. Two times are s < t.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vdm_jax import checks, loss, timestep
from vdm_jax.distributions import Bernoulli
from vdm_jax.loss import ElboTerms
from vdm_jax.process import expand, scan
from vdm_jax.types import Images, Key, PerExample, Tensor

Keep = Callable[[Tensor], Tensor]
"""Times in [0, 1], of any shape -> keep(t), of the same shape."""

Denoise = Callable[[Tensor, PerExample], Tensor]
"""z_t in {-1, +1} [batch, *event] and keep_t [batch] -> logits of x = 1, [batch, *event]."""


def constant_erasure(t: Tensor) -> Tensor:
    """Returns keep(t) = 1 - t, the paper's choice for bits: beta_i = 1 / (T - i + 1)."""
    return 1.0 - t


def marginal(x: ArrayLike, keep_t: ArrayLike) -> Bernoulli:
    """Returns q(z_t|x) = B(x keep_t + (1 - keep_t) / 2)."""
    return transition(x, 1.0, keep_t)


def transition(z_s: ArrayLike, keep_s: ArrayLike, keep_t: ArrayLike) -> Bernoulli:
    """Returns q(z_t|z_s) = B(z_s k + (1 - k) / 2) with k = keep_t / keep_s = prod (1 - beta)."""
    return Bernoulli(_vote(z_s, keep_s, keep_t))


def posterior(z_t: ArrayLike, x: ArrayLike, keep_s: ArrayLike, keep_t: ArrayLike) -> Bernoulli:
    """Returns q(z_s|z_t, x), by Bayes' rule.

    The kernels are symmetric in their two bits, so that q(z_t|z_s) is as a function of z_s what
    `transition` from z_t would be; and probabilities multiply as logits add.
    """
    return Bernoulli(_vote(z_t, keep_s, keep_t) + _vote(x, 1.0, keep_s))


def reverse(z_t: ArrayLike, x_hat: Tensor, keep_s: ArrayLike, keep_t: ArrayLike) -> Bernoulli:
    """Returns p(z_s|z_t) = sum_x p_hat(x|z_t) q(z_s|z_t, x), p_hat(x = 1|z_t) = sigmoid(x_hat).

    A mixture, and not the posterior at a fractional x: the posterior isn't linear in x, but the
    mixture is what z_s given z_t is if p_hat is what x given z_t is. At keep_s = 1 it is p_hat.
    """
    checks.same_shape(x_hat, z_t, "x_hat", "z_t")
    x_hat = jnp.asarray(x_hat)
    if_1 = posterior(z_t, jnp.ones_like(x_hat), keep_s, keep_t)
    if_0 = posterior(z_t, jnp.zeros_like(x_hat), keep_s, keep_t)

    # Sums of positive numbers as logarithms: small probabilities of either value keep their digits.
    def log_mixture(z_s: int) -> Tensor:
        p_1, p_0 = jax.nn.log_sigmoid(x_hat), jax.nn.log_sigmoid(-x_hat)
        return jnp.logaddexp(p_1 + if_1.log_prob(z_s), p_0 + if_0.log_prob(z_s))

    return Bernoulli(log_mixture(1) - log_mixture(0))


def prior(x: ArrayLike, keep_1: ArrayLike) -> PerExample:
    """Returns KL(q(z_1|x) || B(1/2)), [batch] nats, for x [batch, *event]; zero at keep_1 = 0."""
    q = marginal(x, keep_1)
    return loss.sum_event(q.kl(Bernoulli(jnp.zeros_like(q.logits))))


def diffusion(
    images: Images, u: Tensor, t: PerExample, denoise: Denoise, keep: Keep, num_steps: int
) -> PerExample:
    """Returns T times the loss of one of T = `num_steps` steps, the one that `t` falls into.

    It is [batch], in nats. Its expectation over t ~ U[0, 1] is sum_{i=1}^T E KL(q(z_{i-1}|z_i, x)
    || p(z_{i-1}|z_i)). The first of these steps ends at z_0 = x, where q is certain: its term is
    -log p(x|z_1), the reconstruction. z_t is discrete, so that the derivative at given noise isn't
    that of the expectation by the schedule: `keep` gets a gradient of zero.

    `u` is uniform noise in [0, 1) of the shape of images: z_t is 1 where u < q(z_t = 1|x).
    """
    checks.times(t)
    images, u, t = jnp.asarray(images), jnp.asarray(u), checks.as_float(t)
    checks.same_shape(images, u, "images", "u")
    checks.per_example(t, images)
    _check_start(keep)
    s, t = timestep.grid(t, num_steps)
    keep_s, keep_t = _values(keep, s), _values(keep, t)
    z_t = marginal(images, keep_t).at(u)
    p = reverse(z_t, denoise(_signs(z_t, keep_t.dtype), keep_t), keep_s, keep_t)
    return num_steps * loss.sum_event(posterior(z_t, images, keep_s, keep_t).kl(p))


def elbo(
    images: Images, u: Tensor, t: PerExample, denoise: Denoise, keep: Keep, num_steps: int
) -> ElboTerms:
    """Returns one unbiased sample of the bound on -log p(x), the paper's -K, for each image.

    It is for t ~ U[0, 1] and uniform noise `u`, as in `diffusion`. `reconstruction` is zero: z_0 is
    the data, and the first step stands for the decoder.
    """
    at_t = diffusion(images, u, t, denoise, keep, num_steps)
    keep_1 = _values(keep, jnp.ones(1, jnp.result_type(t, float)))
    return ElboTerms(jnp.zeros_like(at_t), prior(images, keep_1), at_t)


def sample(key: Key, denoise: Denoise, keep: Keep, shape: Sequence[int], num_steps: int) -> Images:
    """Returns samples in {0, 1} of `shape`: z_1 ~ B(1/2), then `num_steps` equal steps."""
    timestep.check_num_steps(num_steps)
    shape = checks.shape(shape)
    _check_start(keep)
    keeps = _values(keep, jnp.linspace(1.0, 0.0, num_steps + 1))
    key_init, key_steps = jax.random.split(key)

    def body(z_t: Images, step: tuple[Tensor, Tensor, Tensor]) -> tuple[Images, None]:
        i, keep_t, keep_s = step
        per_example = jnp.broadcast_to(keep_t, z_t.shape[:1])
        p = reverse(z_t, denoise(_signs(z_t, keeps.dtype), per_example), keep_s, keep_t)
        return p.sample(jax.random.fold_in(key_steps, i)), None

    z_1 = Bernoulli(jnp.zeros(shape, keeps.dtype)).sample(key_init)
    return scan(body, z_1, (jnp.arange(num_steps), keeps[:-1], keeps[1:]))


def _signs(bits: ArrayLike, dtype: jnp.dtype | None = None) -> Tensor:
    """Returns {0, 1} as floats in {-1, +1}, and everything else as NaN."""
    bits = jnp.asarray(bits)
    signs = jnp.where(bits == 1, 1.0, jnp.where(bits == 0, -1.0, jnp.nan))
    return signs if dtype is None else signs.astype(dtype)


def _vote(bits: ArrayLike, keep_s: ArrayLike, keep_t: ArrayLike) -> Tensor:
    """Returns logits for the bit at one end of a step, given the bit at the other: +-log odds.

    With k = keep_t / keep_s the odds of no change are (1 + k) / (1 - k) = 1 + 2k / (1 - k). Written
    in keep_s - keep_t: a ratio near 1 would be rounded before it is subtracted, and log1p keeps
    the digits as keep_t goes to 0.
    """
    signs = _signs(bits)
    keep_s, keep_t = expand(keep_s, signs, "keep_s"), expand(keep_t, signs, "keep_t")
    return signs * jnp.log1p(2.0 * keep_t / (keep_s - keep_t))


def _values(keep: Keep, t: Tensor) -> Tensor:
    """Returns keep(t), of the shape of t, constant under differentiation."""
    values = jax.lax.stop_gradient(jnp.asarray(keep(t)))
    if values.shape != t.shape:
        raise ValueError(f"keep must map {t.shape} to {t.shape}, but returned {values.shape}.")
    return values


def _check_start(keep: Keep) -> None:
    """Raises ValueError if keep(0) is known and not 1: the bound would lack a term."""
    with jax.ensure_compile_time_eval():
        start = checks.known(keep(jnp.zeros(1)))
    if start is not None and not (start == 1.0).all():
        raise ValueError(f"keep(0) must be 1 (z_0 is the data), got {start}.")


class BinomialDiffusion(NamedTuple):
    """Diffusion of black-and-white images (`related.binomial`) with keep(t) = 1 - t."""

    denoise: Denoise  # (z_t in {-1, 1}, keep_t) -> logits of x = 1
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
        return elbo(images, u, t, self.denoise, constant_erasure, self.num_steps)

    def elbo_by_keys(self, images: Images, t: PerExample, keys: Key) -> ElboTerms:
        """Returns the same at given times, with the noise of one key per example, [batch]."""
        u = jax.vmap(lambda key: jax.random.uniform(key, self.event_shape))(keys)
        return elbo(images, u, t, self.denoise, constant_erasure, self.num_steps)

    def sample(self, key: Key, n: int, num_steps: int | None = None) -> Images:
        """Returns `n` ancestral samples, integers in {0, 1}."""
        shape, steps = (n, *self.event_shape), self.num_steps if num_steps is None else num_steps
        return sample(key, self.denoise, constant_erasure, shape, steps)
