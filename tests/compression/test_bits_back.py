"""Bits-back coding comes to the bound: rates of many images of a model of which all is known."""

import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

from vdm_jax import process
from vdm_jax.compression import bits_back, chain
from vdm_jax.compression.ans import Stacks
from vdm_jax.compression.network import Bound, Network
from vdm_jax.compression.steps import equal

STEPS, LANES, BATCHES = 30, 2048, 2


class Noise:
    """The noise that was popped: of each level its mean square, and with that of the level before
    its mean product."""

    def __init__(self, steps, bound):
        self.squares, self.products = [], []
        self._steps, self._bound = steps, bound

    def observe(self, level, z, eps_hat, share):
        self._bound.observe(level, z, eps_hat, share)
        if level > 0:
            s, t = self._steps.gammas[level - 1 : level + 1]
            q = process.transition(jnp.asarray(self._z), s, t)
            eps = np.asarray((z - q.mean) / jnp.sqrt(q.var))
            self.squares.append(np.mean(eps**2))
            if level > 1:
                self.products.append(np.mean(eps * self._eps))
            self._eps = eps
        self._z = z


@pytest.fixture(scope="module")
def rates():
    """Returns net bits, bound and path of 4,096 images, and what is known of their noise."""
    with jax.enable_x64(True):
        model = known.model()
        steps = chain.make(equal(model.vdm.gamma, STEPS), known.LEVELS, chain.DEFAULT_GRID)
        network, bound = (
            Network(model.bind, model.params, steps.gammas, LANES),
            Bound(model.vdm, steps),
        )
        coder, noise = bits_back.Coder(steps, network), Noise(steps, bound)
        rng, stacks = np.random.default_rng(1), Stacks(LANES)
        stacks.words = rng.integers(0, 2**32, (LANES, 60), dtype=np.uint32)
        stacks.sizes[:] = 60
        stacks.states[:] = rng.integers(2**32, 2**63, LANES, dtype=np.uint64)
        images = known.images(BATCHES * LANES).reshape(BATCHES, LANES, -1)
        found = []
        for batch in images:
            before = stacks.bits()
            bound.start(batch)
            coder.encode(stacks, batch, np.ones(LANES, bool), noise.observe)
            found.append([stacks.bits() - before, *bound.bits()])
        for batch in images[::-1]:  # and all of it comes back
            decoded = coder.decode(stacks, batch.shape[1], np.ones(LANES, bool))
            np.testing.assert_array_equal(decoded, batch)
        assert np.all(stacks.sizes == 60)
        return *np.concatenate(found, axis=1), noise


def test_the_net_rate_is_the_bound(rates):
    net, bound, _, _ = rates
    excess = (net - bound).mean() / bound.mean()
    error = (net - bound).std() / np.sqrt(len(net)) / bound.mean()
    assert error < 0.004
    assert abs(excess) < 2 * error + 0.002


def test_coding_itself_costs_next_to_nothing(rates):
    """Beside what the same latents cost unrounded: no chance is in that."""
    net, bound, path, _ = rates
    assert abs((net - path).mean()) < 1e-3 * bound.mean()
    assert np.std(net - path) < 0.1 * np.std(net - bound)


def test_what_is_popped_is_standard_normal_and_new_at_each_level(rates):
    """Why the rate is the bound: the bits were somebody else's, and serve as noise."""
    noise = rates[3]
    for values, expected in ((noise.squares, 1.0), (noise.products, 0.0)):
        error = np.std(values) / np.sqrt(len(values))
        assert error < 1.7e-3
        assert abs(np.mean(values) - expected) < 4 * error


def test_the_bound_on_the_way_is_that_of_the_loss(rates):
    """Along the chain's latents, every level of them, as against drawn times and noise."""
    _, bound, _, _ = rates
    with jax.enable_x64(True):
        vdm, images = known.model().vdm._replace(num_steps=STEPS), known.images(BATCHES * LANES)
        draw = jax.jit(lambda key: vdm.elbo(key, jnp.asarray(images)).total)
        drawn = np.mean([draw(jax.random.key(i)) for i in range(4)], axis=0) / np.log(2)
    difference = bound - drawn
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(bound))
    assert difference.std() / np.sqrt(len(bound)) < 0.012 * bound.mean()
