"""What the published runs need of each chip, by formulas: memory, exchange, expected times."""

import json
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from experiments import advice, collectives, cost
from experiments.chips import UTILISATION, Chip, compute_seconds, network_seconds
from experiments.configs import cifar10, imagenet32, imagenet64
from experiments.cost import Event
from experiments.models import make_model
from vdm_jax.train import optimizer, sharding, step

__all__ = [
    "ALLOWANCE",
    "CASES",
    "Case",
    "break_even",
    "counted_cost",
    "counted_of",
    "fewest_parts",
    "largest_batch",
    "plan",
    "seconds",
    "state",
]

ALLOWANCE = 1.6
"""XLA's temporaries on a CPU are up to so many times the count: what fits, fits with that."""


class Case(NamedTuple):
    """A published run."""

    name: str
    config: ConfigDict
    event_shape: Event
    batch: int
    steps: int

    def with_settings(self, **settings: Any) -> "Case":
        """Other settings of `config.model`."""
        changes = {f"model.{name}": value for name, value in settings.items()}
        return self._replace(config=advice.changed(self.config, changes))


CASES = (
    Case("cifar10", cifar10.get_config(), (32, 32, 3), 128, 10_000_000),
    Case("cifar10:aug", cifar10.get_config("aug"), (32, 32, 3), 768, 100_000_000),
    Case("imagenet32", imagenet32.get_config(), (32, 32, 3), 512, 2_000_000),
    Case("imagenet64", imagenet64.get_config(), (64, 64, 3), 512, 2_000_000),
)


class Plan(NamedTuple):
    """What a run needs of each chip."""

    images: float
    """In a micro-batch."""
    state: int
    """Bytes of parameters, their average and the moments."""
    gathered: int
    """Bytes of the parameters once more, while a step lasts."""
    temporaries: float
    """Bytes of intermediate results and gradients, by the count."""
    parameters: int
    """Bytes of one copy of the parameters."""
    sent: float
    """Bytes over the network in a step."""
    flops: float
    """In a step."""

    @property
    def memory(self) -> float:
        """Bytes in all, temporaries with `ALLOWANCE`."""
        return self.state + self.gathered + ALLOWANCE * self.temporaries


def plan(case: Case, chips: int, shard_params: int = 1, accumulate: int = 1) -> Plan:
    """By the formula of docs/scale.md."""
    mesh = collectives.abstract_mesh(chips, shard_params)
    template = state(case, mesh)
    of = collectives.shares(template.params, mesh)
    images = case.batch / chips / accumulate
    sums = (of.copied + of.split // shard_params) if accumulate > 1 else 0
    return Plan(
        images=images,
        state=_device_bytes(template),
        gathered=of.split if shard_params > 1 else 0,
        temporaries=max(counted_of(case, images), of.split + of.copied) + sums,
        parameters=of.split + of.copied,
        sent=collectives.sent(of, chips // shard_params, shard_params, accumulate),
        flops=counted_cost(case).flops * images * accumulate,
    )


_STATES: dict[str, step.TrainState] = {}


def state(case: Case, mesh: Mesh | AbstractMesh) -> step.TrainState:
    """The shapes of the training state, and where each leaf lies."""
    key = _settings(case)
    if key not in _STATES:
        model = make_model(case.config, case.event_shape, 256)
        adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
        _STATES[key] = step.abstract_state(model, adamw, mesh)
    return sharding.placed(mesh, _STATES[key])


def _settings(case: Case) -> str:
    """All that shapes depend on but the batch."""
    return json.dumps([case.event_shape, case.config.model.to_dict()])


def _device_bytes(tree: Any) -> int:
    """Of each device's share of a tree of shapes with shardings."""
    shapes = [(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)]
    return sum(leaf.dtype.itemsize * math.prod(of) for leaf, of in shapes)


class Counted(NamedTuple):
    """`cost.of_gradient` as a line in the number of images."""

    flops: float
    """An image."""
    image: float
    """Bytes an image."""
    fixed: float
    """Bytes without any."""


_COUNTED: dict[str, Counted] = {}


def counted_cost(case: Case) -> Counted:
    """Of two small batches."""
    key = _settings(case)
    if key not in _COUNTED:
        few, more = (cost.of_gradient(case.config, case.event_shape, n) for n in (4, 8))
        image = (more.peak - few.peak) / 4
        _COUNTED[key] = Counted(more.flops / 8, image, more.peak - 8 * image)
    return _COUNTED[key]


def counted_of(case: Case, images: float) -> float:
    """Bytes of a step's intermediate results and gradient, on one chip."""
    counted = counted_cost(case)
    return counted.fixed + images * counted.image


def largest_batch(case: Case, memory: float) -> int:
    """Images that fit into `memory` bytes of one chip with a copy of all; 0 if none does."""
    one, counted = plan(case._replace(batch=1), 1), counted_cost(case)
    left = memory - one.state - ALLOWANCE * counted.fixed
    return max(0, int(left / (ALLOWANCE * counted.image)))


def fewest_parts(case: Case, chips: int, memory: float, shard_params: int = 1) -> int | None:
    """The least `accumulate`, of powers of two, with which a step fits; None if none does."""
    parts = 1
    while case.batch % (chips * parts) == 0:
        if plan(case, chips, shard_params, parts).memory <= memory:
            return parts
        parts *= 2
    return None


# ---- expected times ----


class Times(NamedTuple):
    """Seconds of a step, expected and not measured."""

    low: float
    """At the high utilisation, exchange and computing at the same time."""
    middle: float
    """At the expected utilisation, one after the other."""
    high: float
    """At the low utilisation, one after the other."""
    exchange: float
    """Part of it, without overlap."""


def seconds(case: Case, chips: int, chip: Chip, accumulate: int = 1) -> Times:
    """Of a step with a copy of the parameters on each chip."""
    found = plan(case, chips, accumulate=accumulate)
    dtype = case.config.model.dtype
    slow, middle, fast = (compute_seconds(found.flops, chip, dtype, u) for u in UTILISATION)
    exchange = accumulate * network_seconds(found.parameters, chips, chip)
    return Times(max(fast, exchange), middle + exchange, slow + exchange, exchange)


def break_even(case: Case, chips: int, chip: Chip) -> float:
    """Images a chip for which exchange and computing take equally long."""
    found = plan(case, chips)
    exchange = network_seconds(found.parameters, chips, chip)
    of_image = found.flops / found.images
    return exchange / compute_seconds(of_image, chip, case.config.model.dtype, UTILISATION[1])
