"""Closed forms against which the tests hold the library.

Nothing here calls vdm_jax. Arrays are float64 where the caller has enabled it. Throughout,
gamma = -log SNR, alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma).
"""

import functools
from decimal import Decimal, localcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from scipy import integrate, special, stats


def alpha_sigma(gamma):
    """alpha and sigma of a value of gamma, in numpy's float64."""
    gamma = np.asarray(gamma, np.float64)
    return np.exp(-0.5 * np.logaddexp(0.0, gamma)), np.exp(-0.5 * np.logaddexp(0.0, -gamma))


# ---- quadrature ----


def gauss_legendre(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [panels * order] of composite Gauss-Legendre quadrature over [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    left = np.arange(panels)[:, None] / panels
    t = left + (nodes + 1.0) / (2.0 * panels)
    return t.ravel(), np.tile(weights / (2.0 * panels), panels)


def gauss_hermite(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [order] such that sum(w f(nodes)) is E f(eps) for eps ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return nodes, weights / weights.sum()


def cubature(dims: int) -> np.ndarray:
    """Points [2 dims, dims] whose plain mean is E f(eps), eps ~ N(0, I), for quadratic f."""
    return np.sqrt(dims) * np.concatenate([np.eye(dims), -np.eye(dims)])


def over_times_and_noise(run, x, num_steps: int | None, noise=None) -> np.ndarray:
    """Expectations [..., n] of run(x, eps, t) over t and eps at each x of [n, d], by quadrature.

    noise: nodes [m, d] and their weights; by default the ones exact for a denoiser linear in z.
    """
    d = x.shape[-1]
    nodes, weights = noise or (cubature(d), np.full(2 * d, 0.5 / d))
    if num_steps is None:
        t, t_weights = gauss_legendre(40, 8)
    else:
        t, t_weights = (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    i, j, k = (a.ravel() for a in np.indices((len(x), len(t), len(nodes))))
    found = np.asarray(run(x[i], nodes[k], t[j]))
    return found.reshape(*found.shape[:-1], len(x), len(t), len(nodes)) @ weights @ t_weights


@functools.cache
def expected_log_prob(level: int, gamma_0: float, levels: int) -> float:
    """E log p(x|z_0) at one level by adaptive quadrature, told where the integrand bends."""
    values, width = 2.0 * (np.arange(levels) + 0.5) / levels - 1.0, np.exp(0.5 * gamma_0)

    def integrand(eps: float) -> float:
        logits = -0.5 * np.square((values[level] - values) / width + eps)
        return (logits[level] - special.logsumexp(logits)) * stats.norm.pdf(eps)

    bends = (np.arange(5) + 0.5) * 2.0 / (levels * width)
    points = [p for p in (*-bends, *bends) if abs(p) < 12.0] or None
    return integrate.quad(integrand, -12, 12, points=points, limit=2000, epsabs=1e-14)[0]


# ---- Gaussians ----


def normal_denoiser(mean: float, var: float):
    """E[x|z_t] of independent elements x ~ N(mean, var), for gamma_t [batch] or a scalar."""

    def denoise(z, gamma_t):
        g = jnp.asarray(gamma_t).reshape(jnp.shape(gamma_t) + (1,) * (z.ndim - jnp.ndim(gamma_t)))
        alpha = jnp.sqrt(jax.nn.sigmoid(-g))
        return mean + alpha * var / (var * alpha**2 + jax.nn.sigmoid(g)) * (z - alpha * mean)

    return denoise


def kl_exact(mean_q: float, var_q: float, mean_p: float, var_p: float) -> float:
    """KL(N(mean_q, var_q) || N(mean_p, var_p)) of the given floats, by 80-digit arithmetic."""
    with localcontext() as context:
        context.prec = 80
        mean_q, var_q, mean_p, var_p = (Decimal(float(v)) for v in (mean_q, var_q, mean_p, var_p))
        ratio = var_q / var_p
        return float((ratio - 1 - ratio.ln() + (mean_q - mean_p) ** 2 / var_p) / 2)


def posterior_exact(z_t: float, x: float, gamma_s: float, gamma_t: float) -> tuple[float, float]:
    """Mean and variance of q(z_s|z_t, x), from q(z_s|x), q(z_t|z_s) and q(z_t|x) by Bayes' rule.

    The exponents of N(z_s; alpha_s x, sigma_s^2) and N(z_t; r z_s, b), r = alpha_t / alpha_s and
    b = sigma_t^2 - r^2 sigma_s^2, add up to one square in z_s; by 80-digit arithmetic.
    """
    with localcontext() as context:
        context.prec = 80
        z_t, x, gamma_s, gamma_t = (Decimal(float(v)) for v in (z_t, x, gamma_s, gamma_t))
        square_s, square_t = 1 / (1 + gamma_s.exp()), 1 / (1 + gamma_t.exp())  # of alpha
        alpha_s, ratio = square_s.sqrt(), (square_t / square_s).sqrt()
        var_s, step = 1 - square_s, (1 - square_t) - ratio**2 * (1 - square_s)
        precision = 1 / var_s + ratio**2 / step
        return float((alpha_s * x / var_s + ratio * z_t / step) / precision), float(1 / precision)


class GaussianData(NamedTuple):
    """Data x ~ N(mean, cov), mean [d], cov [d, d]; latents z = alpha x + sigma eps."""

    mean: np.ndarray
    cov: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Points x [2 d, d] whose plain mean is the expectation over the data of any quadratic."""
        return self.mean + cubature(len(self.mean)) @ np.linalg.cholesky(self.cov).T

    def _latent(self, gamma):
        """alpha and the covariance [..., d, d] of z, for gamma of any shape."""
        gamma = jnp.asarray(gamma)[..., None, None]
        var = jax.nn.sigmoid(gamma)
        cov = jax.nn.sigmoid(-gamma) * self.cov + var * np.eye(len(self.mean))
        return jnp.sqrt(jax.nn.sigmoid(-gamma))[..., 0], cov

    def score(self, z, gamma):
        """The gradient of log q(z_t) at z [batch, d], for gamma [batch] or a scalar."""
        alpha, cov = self._latent(gamma)
        centred = z - alpha * self.mean
        return -jnp.linalg.solve(
            jnp.broadcast_to(cov, (*z.shape, z.shape[-1])), centred[..., None]
        )[..., 0]

    def denoise(self, z, gamma):
        """E[x|z_t = z] = mean + alpha cov Cov(z)^-1 (z - alpha mean): the optimal denoiser."""
        alpha, _ = self._latent(gamma)
        return self.mean - alpha * self.score(z, gamma) @ self.cov

    def log_prob(self, x) -> np.ndarray:
        """Exact log-density of the data at x [..., d]."""
        centred = np.asarray(x) - self.mean
        square = np.einsum("...i,ij,...j->...", centred, np.linalg.inv(self.cov), centred)
        return -0.5 * (square + np.linalg.slogdet(2 * np.pi * self.cov)[1])

    def entropy(self) -> float:
        """E[-log p(x)]."""
        return float(0.5 * np.linalg.slogdet(2 * np.pi * np.e * self.cov)[1])

    def eps_error(self, gamma) -> np.ndarray:
        """E||eps - E[eps|z_t]||^2 = sum_i SNR l_i / (1 + SNR l_i), l_i the eigenvalues of cov."""
        logits = np.log(np.linalg.eigvalsh(self.cov)) - np.asarray(gamma)[..., None]
        return np.exp(-np.logaddexp(0.0, -logits)).sum(-1)

    def diffusion_continuous(self, gamma_0: float, gamma_1: float) -> float:
        """E_x of the continuous-time diffusion loss, 1/2 int eps_error dgamma, integrated."""
        logits = np.log(np.linalg.eigvalsh(self.cov))
        antiderivative = np.logaddexp(0.0, logits - gamma_0) - np.logaddexp(0.0, logits - gamma_1)
        return float(0.5 * antiderivative.sum())

    def diffusion_discrete(self, gammas: np.ndarray) -> float:
        """E_x of the diffusion loss of a chain with the gammas [T + 1], in increasing order."""
        return float(0.5 * np.sum(np.expm1(np.diff(gammas)) * self.eps_error(gammas[1:])))

    def prior(self, gamma_1: float) -> float:
        """E_x KL(q(z_1|x) || N(0, I))."""
        alpha, sigma = alpha_sigma(gamma_1)
        second_moment = np.trace(self.cov) + self.mean @ self.mean
        dims = len(self.mean)
        return float(0.5 * (dims * (sigma**2 - 1 - np.log(sigma**2)) + alpha**2 * second_moment))


class Mixture(NamedTuple):
    """Data from a mixture of N(means[k], var[k] I): weights [K], means [K, d], var [K]."""

    weights: np.ndarray
    means: np.ndarray
    var: np.ndarray

    def _log_joint(self, z, gamma):
        """log of weight times density of z [d] under each latent component [K]."""
        var = self._var(gamma)
        centred = z - jnp.sqrt(jax.nn.sigmoid(-gamma)) * self.means
        square = jnp.sum(jnp.square(centred), axis=-1) / var
        dims = self.means.shape[-1]
        return jnp.log(self.weights) - 0.5 * (square + dims * jnp.log(2 * jnp.pi * var))

    def _var(self, gamma):
        return jax.nn.sigmoid(-gamma) * self.var + jax.nn.sigmoid(gamma)

    def log_prob(self, z, gamma):
        """log q(z_t) at one z [d], for a scalar gamma (-inf: the density of the data)."""
        return logsumexp(self._log_joint(z, gamma))

    def denoise(self, z, gamma):
        """E[x|z_t = z] at one z [d]: the components' posterior means, weighted by their odds."""
        alpha = jnp.sqrt(jax.nn.sigmoid(-gamma))
        odds = jax.nn.softmax(self._log_joint(z, gamma))
        gain = (alpha * self.var / self._var(gamma))[:, None]
        return odds @ (self.means + gain * (z - alpha * self.means))


def affine_chain(
    gain: np.ndarray, offset: np.ndarray, var: np.ndarray, mean_1: float = 0.0, var_1: float = 1.0
) -> tuple[float, float]:
    """Mean and variance after all the steps z <- gain z + offset + sqrt(var) eps."""
    mean, variance = mean_1, var_1
    for a, b, v in zip(gain, offset, var, strict=True):
        mean, variance = a * mean + b, a * a * variance + v
    return float(mean), float(variance)
