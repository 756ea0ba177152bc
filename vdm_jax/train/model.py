"""A model that is trained: two functions of its parameters, and the unit of its bound."""

from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple, cast

import jax

from vdm_jax import loss, mixed
from vdm_jax.related.binomial import BinomialDiffusion
from vdm_jax.related.hierarchy import HierarchicalVAE
from vdm_jax.types import Images, Key, Tensor
from vdm_jax.vdm import VDM
from vdm_jax.weighting import Weight

Params = Any
"""A pytree of arrays."""

Batch = Mapping[str, Any]
"""`images` [batch, *event], integers (or floats, of continuous data); where the data have them,
`conditioning`, a pytree with leaves [batch, ...], and `mask`, broadcastable to the images."""


Bound = VDM | HierarchicalVAE | BinomialDiffusion
"""A model with its parameters: what training and evaluation call are the methods that all have."""


class Unit(NamedTuple):
    """The unit of a bound: name, key in files, and (nats, event shape, mask) -> this unit."""

    name: str
    key: str
    of: Callable[..., jax.Array]


BITS = Unit("bits per dim", "bpd", loss.bits_per_dim)  # of a probability
NATS = Unit("nats per dim of a density", "nats_per_dim", loss.nats_per_dim)


def unit(bound: Bound) -> Unit:
    """Returns the unit of a model's bound: bits of a probability, or nats of a density."""
    return NATS if None in mixed.kinds(bound.levels) else BITS


def unit_of(names: Container[str]) -> Unit:
    """Returns the unit of some metrics, by their names: that of a density if it is there."""
    return NATS if NATS.key in names else BITS


class Model(NamedTuple):
    """A model that is trained: how its parameters start, and what they are a model of."""

    init: Callable[[Key], Params]
    bind: Callable[..., Any]
    """(parameters, conditioning=None, dropout key=None, mask=None) -> `Bound`; the last is given
    only where the data have a mask, and is meant for the network and for `VDM.mask`."""
    end_points: str | None = None
    """Name in params["gamma"] of what sets the schedule's end points, to train the rest of it for
    a low variance (`train.schedule_variance`)."""
    pixel_levels: int | None = None
    """Number of levels of integer images, for a model of continuous data: it encodes them first."""
    weight: Weight | None = None
    """w(gamma) of the loss that a VDM is trained on (`vdm_jax.weighting`); None: the bound. What is
    reported and evaluated is always the bound."""
    adaptive: bool = False
    """Whether a VDM is trained at times that adapt to where the loss is (`train.objective`)."""

    def with_fields(self, **fields: Any) -> "Model":
        """Returns the model whose `VDM` has other fields, as num_steps=10."""
        bind = self.bind
        return self._replace(bind=lambda *args, **given: bind(*args, **given)._replace(**fields))

    def bind_batch(self, params: Params, batch: Batch, dropout: Key | None = None) -> Bound:
        """Returns the bound with the conditioning of a batch, and its mask if it has one."""
        if (mask := batch.get("mask")) is None:
            return cast(Bound, self.bind(params, batch.get("conditioning"), dropout))
        bound = self.bind(params, batch.get("conditioning"), dropout, mask=mask)
        if getattr(bound, "mask", None) is None:
            raise ValueError(
                "the data have a mask, but bind(params, conditioning, dropout, mask) returned a "
                "model without it, which would count the padding: return VDM(..., mask=mask)."
            )
        return cast(Bound, bound)

    def dropping(self, rate: float) -> "Model":
        """Returns the model that in training sees zeros for a condition with probability `rate`."""

        def bind(
            params: Params, conditioning: Any = None, dropout: Key | None = None, **given: Any
        ) -> Any:
            return self.bind(params, *dropped(conditioning, dropout, rate), **given)

        return self._replace(bind=bind)

    def facts(self, batch: Batch | None = None) -> Bound:
        """Returns its bound with abstract parameters: no more than static fields can be read."""
        found: list[Bound] = []
        key = jax.random.key(0)
        params = jax.eval_shape(self.init, key)
        jax.eval_shape(lambda params: found.append(self.bind_batch(params, batch or {})), params)
        if not isinstance(found[0], Bound):
            raise ValueError(f"bind must return a vdm_jax.VDM, it returned {type(found[0])}.")
        return found[0]

    def data(self, images: Images | Tensor) -> Images | Tensor:
        """Returns the images of a batch as the bound takes them."""
        return images if self.pixel_levels is None else loss.to_data(images, self.pixel_levels)

    def sample(self, params: Params, key: Key, conditioning: Any, num_steps: int) -> Images:
        """Returns one sample for each row of `conditioning`, of data as in a batch."""
        bound = self.bind(params, conditioning)
        if self.pixel_levels is not None:
            bound = bound._replace(levels=mixed.of_images(bound.levels, self.pixel_levels))
        return bound.sample(key, len(jax.tree.leaves(conditioning)[0]), num_steps)


def dropped(condition: Any, dropout: Key | None, rate: float) -> tuple[Any, Key | None]:
    """Returns a condition, a pytree with leaves [batch, ...], and a dropout key for the network.

    In training, where there is a key, all of an example's condition is 0 with probability `rate`.
    """
    if dropout is None or not rate:
        return condition, dropout
    dropout, key = jax.random.split(dropout)
    rows = len(jax.tree.leaves(condition)[0])
    kept = jax.random.bernoulli(key, 1.0 - rate, (rows,))
    return jax.tree.map(lambda leaf: (leaf.T * kept).T.astype(leaf.dtype), condition), dropout
