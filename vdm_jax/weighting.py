"""The weighted diffusion loss (VDM eq. 19), and the weights that published losses amount to.

With a weight w of the noise level gamma = -log SNR the loss is
1/2 int w(gamma) E||eps - eps_hat||^2 dgamma, which at time t is w(gamma(t)) times `loss.diffusion`.
A method that draws gamma with a density p, whatever its schedule, and multiplies the squared error
of eps by c(gamma) has w = c p, up to a constant factor.

Let L(t) be the diffusion loss from t to 1 and the prior term: the negative bound on log p(z_t) of
data with noise, z_t ~ q(z_t|x), up to the entropy of q(z_t|x), which no model changes. As
L'(t) = -gamma'(t) / 2 E||eps - eps_hat||^2, integration by parts makes of the weighted loss
w(0) L(0) + int L dw - w(1) L(1), where L(1) has no parameter. So if w never falls as gamma grows it
is w(1) times the mean of L over the distribution `shares` of noise levels: still a bound, but on
data with noise (Kingma & Gao 2023, arXiv 2303.00848). If w falls anywhere it bounds nothing: a
model that is worse at every noise level may have the lower loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks, timestep
from vdm_jax import loss as plain
from vdm_jax.types import Gamma, Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

Weight = Callable[[Tensor], Tensor]
"""w(gamma) of an array of noise levels, of its shape, and nowhere negative."""


def bound() -> Weight:
    """Returns w = 1, that of the bound (VDM eq. 18)."""
    return jnp.ones_like


def simple(schedule: Gamma | None = None) -> Weight:
    """Returns that of ||eps - eps_hat||^2 at uniform t (Ho et al. 2020): w = 1 / gamma'(t).

    It depends on the schedule. Without one it is the cosine schedule's, tan(pi t / 2) =
    exp(gamma / 2), of which 1 / gamma' is sech(gamma / 2) / (2 pi); the factor is left out.
    """
    if schedule is None:
        return lambda gamma: 1.0 / jnp.cosh(0.5 * gamma)
    t = jnp.linspace(0.0, 1.0, 4001)
    gammas, slopes = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return lambda gamma: jnp.interp(gamma, gammas, 1.0 / slopes)


def min_snr(cut: float = 5.0, schedule: Gamma | None = None) -> Weight:
    """Returns that of min(SNR, cut) ||x - x_hat||^2 at uniform t (Hang et al. 2023, section 3.4).

    ||x - x_hat||^2 is ||eps - eps_hat||^2 / SNR; the schedule is as in `simple`.
    """
    return lambda gamma: simple(schedule)(gamma) * jnp.minimum(1.0, cut * jnp.exp(gamma))


def p2(power: float = 1.0, k: float = 1.0, schedule: Gamma | None = None) -> Weight:
    """Returns that of ||eps - eps_hat||^2 / (k + SNR)^power at uniform t (Choi et al. 2022).

    The schedule is as in `simple`.
    """
    return lambda gamma: simple(schedule)(gamma) * (k + jnp.exp(-gamma)) ** -power


def edm(mean: float = -1.2, std: float = 1.2, data: float = 0.5) -> Weight:
    """Returns that of Karras et al. 2022, table 1, up to a factor.

    There s = exp(gamma / 2) has ln s ~ N(mean, std^2), and ||x - x_hat||^2, which is
    s^2 ||eps - eps_hat||^2, the weight (s^2 + data^2) / (s data)^2.
    """
    peak = lambda gamma: jnp.exp(-0.5 * jnp.square((0.5 * gamma - mean) / std))  # noqa: E731
    return lambda gamma: peak(gamma) * (jnp.exp(gamma) + data**2)


def v() -> Weight:
    """Returns exp(gamma / 2): ||v - v_hat||^2 with the cosine schedule (Salimans & Ho 2022).

    It is that of flow matching too (Lipman et al. 2023): z_t = (1 - t) x + t eps, uniform t, and
    the squared error of eps - x.
    """
    return lambda gamma: jnp.exp(0.5 * gamma)


def sigmoid(k: float = 2.0) -> Weight:
    """Returns sigmoid(gamma + k) (Kingma & Gao 2023, there sigmoid(-lambda + k))."""
    return lambda gamma: jax.nn.sigmoid(gamma + k)


NAMED: dict[str, Callable[[], Weight]] = {
    "bound": bound, "simple": simple, "min_snr": min_snr, "p2": p2, "edm": edm, "v": v,
    "sigmoid": sigmoid,
}  # fmt: skip


def at(weight: Weight, vdm: VDM, t: PerExample) -> PerExample:
    """Returns w(gamma(t)), [batch], the factor of the diffusion loss at times t.

    Raises ValueError for a schedule of each feature, or a number of steps.
    """
    gamma_t = timestep.gammas(vdm.gamma, t)
    if gamma_t.ndim > 1 or vdm.num_steps is not None:
        what = (
            "one of each feature or example" if gamma_t.ndim > 1 else f"num_steps={vdm.num_steps}"
        )
        wanted = "one schedule for all features, in continuous time (num_steps=None)"
        raise ValueError(f"a weighted loss needs {wanted}, got {what}.")
    return weight(gamma_t)


def loss(key: Key, vdm: VDM, images: Images | Tensor, weight: Weight) -> PerExample:
    """Returns one unbiased sample of the weighted diffusion loss of each image, [batch] (eq. 19).

    With w = 1 it is the diffusion term of `vdm.elbo`, in nats, of the same draws.
    """
    _, eps, t = plain.draw(key, np.shape(images), vdm.timesteps)
    return at(weight, vdm, t) * vdm.elbo_given(images, eps, t).diffusion


def is_monotone(weight: Weight, gamma_0: float, gamma_1: float) -> bool:
    """Returns whether w never falls from gamma_0 to gamma_1, as far as 10,001 points tell."""
    w = np.asarray(weight(jnp.linspace(gamma_0, gamma_1, 10_001)))
    return bool(np.all(np.diff(w) >= -4.0 * np.finfo(w.dtype).eps * np.abs(w[1:])))


def shares(weight: Weight, gammas: ArrayLike) -> np.ndarray:
    """Returns the distribution over noise levels whose mean L is the loss of a monotone weight.

    `gammas` [n] ascend from gamma_0 to gamma_1. Of the result [n], of sum 1 and, but for rounding,
    not negative, the first is w(gamma_0) / w(gamma_1), the share of the data themselves (of z_0),
    and each other that of the levels between two neighbours. Raises ValueError for a weight that
    isn't monotone.
    """
    ends = float(np.min(gammas)), float(np.max(gammas))
    if not is_monotone(weight, *ends):
        said = f"the weight falls somewhere from gamma = {ends[0]:g} to {ends[1]:g}"
        raise ValueError(f"{said}: its loss is no mean of bounds.")
    w = np.asarray(weight(checks.as_float(gammas)))
    return np.diff(w, prepend=0.0) / w[-1]


def statement(name: str, gamma_0: float, gamma_1: float) -> str:
    """Returns the sentence for reports that says what the loss of a named weight bounds."""
    weight, ends = NAMED[name](), f"from gamma = {gamma_0:g} to {gamma_1:g}"
    if not is_monotone(weight, gamma_0, gamma_1):
        return f"the weight {name} falls somewhere {ends}: the loss that is trained bounds nothing"
    share = shares(weight, np.array([gamma_0, gamma_1]))[0]
    return (
        f"the weight {name} never falls {ends}: the loss that is trained is a bound on data with "
        f"noise, of which {100 * share:.2g}% are the data themselves"
    )
