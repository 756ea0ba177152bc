"""Feature maps and output heads that the denoisers share."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import checks, pixels
from vdm_jax.process import expand
from vdm_jax.schedule import alpha
from vdm_jax.timestep import mean_gamma
from vdm_jax.types import Kind, PerExample, Tensor

Head = Literal["eps", "x", "v", "score", "levels", "logits"]
"""What a network's last layer gives: a prediction of that kind, or the odds of the pixel levels; or
as it is, for binomial diffusion, the logits of a bit."""

HEADS: tuple[Head, ...] = get_args(Head)


class Denoiser(nn.Module):
    """The denoisers' common settings, first layer and head.

    A denoiser is called with z_t [batch, *event], gamma_t [batch], or [batch, *event] with a
    schedule of each element, and `conditioning` [batch] or [batch, n], what else to condition on
    (the published models: whether the image was augmented), one zero by default. It returns a
    prediction of z_t's shape. Dropout needs `deterministic=False` and an rng named "dropout".

    Attributes:
      gamma_min, gamma_max: gammas that become 0 and 1 of the time embedding.
      dropout: rate inside the blocks.
      fourier_features: append sin and cos of 2 pi 2^n z to the input, n as `fourier_exponents`
        says: 6 and 7 for 256 levels.
      head: "eps", "x", "v" or "score" (a prediction of that kind) or "levels" (a softmax over the
        pixel levels, whose mean is a prediction of kind "x").
      levels: number of pixel levels.
      learn_variance: return (prediction, share) instead, see `variance_share`.
    """

    gamma_min: float
    gamma_max: float
    dropout: float = 0.1
    fourier_features: bool = False
    head: Head = "eps"
    levels: int = 256
    learn_variance: bool = False

    def embed(self, gamma_t: PerExample, conditioning: Tensor | None, features: int) -> Tensor:
        """Returns what the network is conditioned on, [batch, features + n].

        It is the `sinusoidal` embedding of gamma, rescaled to 0 at gamma_min and 1 at gamma_max,
        and behind it each example's `conditioning`, [batch] (n = 1) or [batch, n].
        """
        gamma_t = mean_gamma(gamma_t)
        t = (gamma_t - self.gamma_min) / (self.gamma_max - self.gamma_min)
        conditioning = jnp.zeros_like(t) if conditioning is None else conditioning
        columns = conditioning.reshape(t.shape[0], -1).astype(t.dtype)
        return jnp.concatenate([sinusoidal(t, features), columns], axis=1)

    def waves(self, h: Tensor, z: Tensor) -> Tensor:
        """Returns the input `h` with the Fourier features of z, if there are any, behind it."""
        if not self.fourier_features:
            return h
        return jnp.concatenate([h, fourier(z, fourier_exponents(self.levels))], axis=-1)

    def outputs(self, size: int) -> int:
        """Returns the size of the last layer for predictions of `size` elements."""
        checks.choice(self.head, f"{type(self).__name__} head", HEADS)
        return size * (self.levels if self.head == "levels" else 1)

    def predict(
        self, last: Tensor, h: Tensor, z_t: Tensor, gamma_t: PerExample, start: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the prediction of the last layer's output; with learned variance, `h`'s share.

        `start` takes the place of z_t as the prediction of eps for a last layer of zeros.
        """
        if self.head == "levels":
            prediction = posterior_mean(last.reshape(*z_t.shape, self.levels), z_t, gamma_t)
        else:
            prediction = finish(last.reshape(z_t.shape), z_t if start is None else start, self.head)
        return (prediction, variance_share(h, z_t)) if self.learn_variance else prediction


def head_kind(head: Head) -> Kind:
    """Returns the kind of prediction that a head gives; "levels" gives a mean over levels, an "x".

    Raises ValueError for "logits", which predict none of them.
    """
    if head == "logits":
        raise ValueError("the head 'logits' is for binomial diffusion only.")
    return "x" if head == "levels" else head


def finish(h: Tensor, z_t: Tensor, head: Head) -> Tensor:
    """Returns the prediction of a head other than "levels" from its last layer's output `h`.

    A last layer of zeros is what the network starts with: eps = z_t and x = z_t; v = 0 and
    score = -z_t, which are those of standard-normal data; logits 0.
    """
    match head:
        case "v" | "logits":
            return h
        case "score":
            # The score itself, -eps / sigma and so large at low noise: divided by sigma here, it
            # would be the head for eps under another name.
            return h - z_t
    return h + z_t


def variance_share(h: Tensor, z_t: Tensor) -> Tensor:
    """Returns the place of the reverse variance between its bounds, in (0, 1), of z_t's shape.

    It is the sigmoid of a dense layer "variance" on the last hidden features `h` (of z_t's axes, or
    [batch, features]); zeros to begin with, hence 1/2. For log var = share log var_transition +
    (1 - share) log var_posterior (Nichol & Dhariwal 2021, eq. 15). To be called in a module.
    """
    outputs = z_t.size // math.prod(h.shape[:-1])
    share = nn.Dense(outputs, kernel_init=nn.initializers.zeros, name="variance")(h)
    return nn.sigmoid(share.reshape(z_t.shape))


def fourier_exponents(levels: int) -> tuple[float, float]:
    """Returns the exponents for which `fourier` has periods of two bins and of one, 2 / levels."""
    n = math.log2(levels)
    return n - 2.0, n - 1.0


def fourier(z: Tensor, exponents: tuple[float, ...] = (6, 7)) -> Tensor:
    """Returns sin and cos of 2 pi 2^n z, which show a network the last bits of a pixel.

    [..., channels] -> [..., 2 channels len(exponents)]; first all sines, then all cosines, each
    with the exponents running fastest (VDM section 3.4 and eq. 34).
    """
    frequencies = 2.0 * math.pi * 2.0 ** jnp.asarray(exponents, z.dtype)
    angles = (z[..., None] * frequencies).reshape(*z.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sinusoidal(t: PerExample, features: int) -> Tensor:
    """Returns the Transformer's embedding of times in [0, 1]: [batch] -> [batch, features].

    sin and cos of 1000 t at features // 2 frequencies, geometrically spaced from 1 to 1/10000; an
    odd last feature is zero. Raises ValueError for fewer than four features.
    """
    half = features // 2
    if half < 2:
        raise ValueError(f"a time embedding needs at least 4 features, got {features}.")
    frequencies = jnp.exp(jnp.arange(half, dtype=t.dtype) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * t[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def level_log_posterior(logits: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
    """Returns log p(x = k|z_t) for each level k, [batch, *event, levels].

    The exact Gaussian likelihood of z_t is added to the network's `logits` [batch, *event, levels],
    which so take the part of a prior that knows the neighbours.
    """
    rescaled = z_t / alpha(expand(gamma_t, z_t))
    likelihood = pixels.decode_log_probs(rescaled, gamma_t, logits.shape[-1])
    return jax.nn.log_softmax(logits + likelihood, axis=-1)


def posterior_mean(logits: Tensor, z_t: Tensor, gamma_t: PerExample) -> Tensor:
    """Returns x_hat = E[x|z_t] under `level_log_posterior`, [batch, *event]."""
    probabilities = jnp.exp(level_log_posterior(logits, z_t, gamma_t))
    return probabilities @ pixels.level_values(logits.shape[-1]).astype(logits.dtype)
