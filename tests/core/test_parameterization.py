import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData, Mixture, alpha_sigma

from vdm_jax import loss, parameterization, schedule
from vdm_jax.parameterization import KINDS, split

TO = {kind: getattr(parameterization, f"to_{kind}") for kind in KINDS}
GAMMA = np.array([-13.3, -4.0, 0.0, 5.0])


def truth(shape: tuple[int, ...] = (4, 2, 3, 1)) -> tuple[dict, jax.Array]:
    """x, eps, v and score that belong to one z_t, and that z_t, by definition, in float64."""
    alpha, sigma = (c.reshape(-1, *[1] * (len(shape) - 1)) for c in alpha_sigma(GAMMA))
    x = np.random.default_rng(0).normal(size=shape)
    eps = np.random.default_rng(1).normal(size=shape)
    # grad_z log N(z; alpha x, sigma^2) = -(z - alpha x)/sigma^2 = -eps/sigma.
    four = {"x": x, "eps": eps, "v": alpha * eps - sigma * x, "score": -eps / sigma}
    return {k: jnp.asarray(v) for k, v in four.items()}, jnp.asarray(alpha * x + sigma * eps)


def test_each_kind_converts_into_each_other(x64):
    four, z_t = truth()
    for source in KINDS:
        for target in KINDS:
            converted = TO[target](four[source], z_t, GAMMA, kind=source)
            # x from eps at gamma = 5, and eps from x at -13.3, magnify roundings by up to e^6.65.
            np.testing.assert_allclose(converted, four[target], rtol=1e-10, atol=1e-11)
        np.testing.assert_array_equal(TO[source](four[source], z_t, GAMMA, source), four[source])


MIXTURE = Mixture(
    np.array([0.2, 0.5, 0.3]),
    np.array([[-0.8, 0.1], [0.4, 0.6], [0.2, -0.9]]),
    np.array([0.01, 0.05, 0.2]),
)


def test_tweedie_score_of_a_mixture_is_the_gradient_of_its_log_density(x64):
    z_t = 1.5 * jax.random.normal(jax.random.key(0), (20, 2))
    gamma = jnp.repeat(jnp.array([-6.0, -2.0, 0.0, 3.0]), 5)
    x_hat, gradient = jax.jit(
        lambda: (
            jax.vmap(MIXTURE.denoise)(z_t, gamma),
            jax.vmap(jax.grad(MIXTURE.log_prob))(z_t, gamma),
        )
    )()
    score = parameterization.to_score(x_hat, z_t, gamma, kind="x")
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-9)
    # Tweedie's formula itself: (z_t + sigma^2 score) / alpha is the posterior mean.
    found = parameterization.to_x(gradient, z_t, gamma, kind="score")
    np.testing.assert_allclose(found, x_hat, rtol=1e-8, atol=1e-10)


def test_one_denoiser_written_in_four_kinds_has_one_loss(x64):
    data = GaussianData(np.array([0.3, -0.5]), np.array([[0.5, 0.2], [0.2, 0.3]]))
    x, eps = (jax.random.normal(jax.random.key(i), (16, 2)) for i in (0, 1))
    t = (jnp.arange(16) + 0.5) / 16
    gamma = schedule.linear(-10.0, 5.0)

    def denoise(kind):
        return lambda z_t, gamma_t: TO[kind](data.denoise(z_t, gamma_t), z_t, gamma_t, kind="x")

    @jax.jit
    def losses():
        found = [loss.diffusion(x, eps, t, denoise(k), gamma, None, k) for k in KINDS]
        # In continuous time no reverse variance makes a difference.
        pair = lambda z, g: (denoise("x")(z, g), jax.nn.sigmoid(z))  # noqa: E731
        return *found, loss.diffusion(x, eps, t, pair, gamma, None, "x", "learned")

    first, *others = losses()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-8)


def test_split_gives_the_prediction_and_the_share_of_each_variance():
    output, share = jnp.ones((2, 3)), jnp.full((2, 3), 0.3)
    for name, value in (("posterior", 0.0), ("transition", 1.0)):
        prediction, found = split(output, name)
        assert prediction is output and found == value
    prediction, found = split((output, share), "learned")
    assert prediction is output and found is share


Z = jnp.zeros((2, 3))
PAIR = (Z, Z)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            (lambda to=to, kind=kind: to(Z, Z, 0.0, kind), f"kind must be one of .* got {kind!r}")
            for to, kind in zip(TO.values(), ["epsilon", None, "X", ""], strict=True)
        ],
        (lambda: TO["x"](Z[:, :1], Z, 0.0, "eps"), r"shape \(2, 1\), but z_t has \(2, 3\)"),
        (lambda: split(Z, "both"), "reverse_var must be one of posterior, .* got 'both'"),
        (lambda: split(PAIR, "posterior"), "returns its prediction alone, got tuple"),
        # An array of two rows is not a pair either: unpacked, it would pass for one.
        (lambda: split(Z, "learned"), r"a pair \(prediction, share\), got ArrayImpl"),
        (lambda: split((Z,), "learned"), r"a pair \(prediction, share\), got tuple"),
        # A share per example would be one per column of a square batch.
        (lambda: split((Z, Z[:, 0]), "learned"), r"share .* prediction's shape, .* \(2, 3\)"),
    ],
)
def test_what_no_denoiser_may_return_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
