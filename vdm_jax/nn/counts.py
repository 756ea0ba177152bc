"""The number of points of a set, which completes the likelihood of the set.

A diffusion model of sets gives p(x_1, ..., x_N | N, condition), the density of the points as a
list. With the number's probability that of the set is

    log p(set | condition) = log p(N | condition) + log p(x_1, ..., x_N | N, condition),

still of the points in the order in which they are listed. All N! orders have the same density, as
the network is equivariant: the density of the set without an order is N! times this. The difference
depends on the data alone, and says nothing of the condition.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from vdm_jax.types import Key, PerExample, Tensor


class Categorical(NamedTuple):
    """Probabilities of the numbers 0, ..., most, by their logits, [batch, most + 1]."""

    logits: Tensor

    def log_prob(self, n: ArrayLike) -> PerExample:
        """Returns log p(n) [batch] in nats, of integers n [batch]; -inf above `most`, or below 0.

        Logits [1, most + 1] are those of each example.
        """
        n = jnp.asarray(n)
        if n.ndim != 1 or n.dtype.kind not in "iu" or len(self.logits) not in (1, len(n)):
            wanted = f"integers [{'batch' if len(self.logits) == 1 else len(self.logits)}]"
            raise ValueError(f"the numbers of points must be {wanted}, got {n.dtype} {n.shape}.")
        n = n.astype(int)  # else 256 would be 0 beside uint8
        log_probs = jnp.broadcast_to(nn.log_softmax(self.logits), (*n.shape, self.logits.shape[-1]))
        found = jnp.take_along_axis(log_probs, n[:, None], axis=1, mode="clip")[:, 0]
        return jnp.where((n >= 0) & (n < log_probs.shape[1]), found, -jnp.inf)

    def sample(self, key: Key, count: int | None = None) -> jax.Array:
        """Returns integers [count], or one for each row of the logits."""
        shape = self.logits.shape[:1] if count is None else (count,)
        return jax.random.categorical(key, self.logits, shape=shape)


class Counts(nn.Module):
    """The distribution of a set's number of points, by itself or given a condition.

    It is trained by maximum likelihood: the mean of -log_prob(n).

    Attributes:
      most: largest number of points.
      width: number of features of the two hidden layers, which see the condition.
    """

    most: int
    width: int = 64

    @nn.compact
    def __call__(self, conditioning: Any = None) -> Categorical:
        """Returns the distribution for each row of a pytree of arrays [batch, ...], or for all."""
        logits = self.param("logits", nn.initializers.zeros, (1, self.most + 1))
        given = [jnp.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(conditioning)]
        if given:
            h = jnp.concatenate(given, axis=1)
            for i in range(2):
                h = nn.swish(nn.Dense(self.width, name=f"hidden_{i}")(h))
            zeros = nn.initializers.zeros
            logits += nn.Dense(self.most + 1, use_bias=False, kernel_init=zeros, name="output")(h)
        return Categorical(logits)
