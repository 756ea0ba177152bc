"""Samples of a trained model by any sampler, step by step, and how good they are."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax import sampling, twosample
from vdm_jax.run.cli import UserError
from vdm_jax.run.restore import Restored
from vdm_jax.sampling import Rule, State
from vdm_jax.train import sharding
from vdm_jax.types import Key

__all__ = ["Stepper", "distances", "draw", "quality"]

POINTS = 1000  # of each sample, at most, that distances are measured with
DIRECTIONS = 256
PERMUTATIONS = 50


class Stepper(NamedTuple):
    """A sampler of one model, compiled: the loop over steps stays outside.

    So a progress bar can be shown; and on a CPU some networks are slower within a compiled loop.
    """

    begin: Callable[..., State]
    """(key, index [batch], gamma_1) -> the state at t = 1; all samples' noise is of their index."""
    move: Callable[..., State]
    """(params, state, key, index, conditioning, step's number, gamma_s, gamma_t, last) -> state."""
    finish: Callable[..., jax.Array]
    """(state, gamma_0) -> integers in [0, levels), [batch, *event], on all devices."""

    @classmethod
    def of(cls, trained: Restored, rule: Rule, mesh: Mesh) -> "Stepper":
        """Returns the sampler of a rule, whatever its steps, for batches split over the devices."""
        event_shape, levels = trained.vdm.event_shape, trained.images.levels
        whole, split = sharding.replicated(mesh), sharding.split_over(mesh)

        def keys(key: Key, index: jax.Array) -> Key:
            return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

        def begin(key: Key, index: jax.Array, gamma_1: jax.Array) -> State:
            z_1 = sampling.initial(keys(key, index), event_shape)
            return sampling.start(z_1, gamma_1)

        def move(
            params: Any,
            state: State,
            key: Key,
            index: jax.Array,
            conditioning: jax.Array,
            i: jax.Array,
            gamma_s: jax.Array,
            gamma_t: jax.Array,
            last: jax.Array,
        ) -> State:
            vdm = trained.model.bind(params, conditioning)
            eps = sampling.noise(keys(key, index), i, event_shape) if rule.noisy else None
            return sampling.step(state, eps, vdm, gamma_s, gamma_t, rule, last)

        def finish(state: State, gamma_0: jax.Array) -> jax.Array:
            return sampling.to_images(state.z, gamma_0, levels)

        states = State._make((split, split, whole))
        one = (whole,) * 4
        return cls(
            jax.jit(begin, in_shardings=(whole, split, whole), out_shardings=states),
            jax.jit(
                move, in_shardings=(whole, states, whole, split, split, *one), out_shardings=states
            ),
            jax.jit(finish, in_shardings=(states, whole), out_shardings=whole),
        )


def draw(
    trained: Restored,
    rule: Rule,
    n: int,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    label: int | None = None,
    advance: Callable[[int], None] = lambda calls: None,
    stepper: Stepper | None = None,
) -> np.ndarray:
    """`n` samples, integers [n, *event]; the same whatever the batch size and the devices.

    Args:
      trained: a VDM, else UserError.
      rule: how.
      n: need not be a multiple of `batch_size`, which the devices must share evenly.
      seed: settles all noise; sample number i takes its noise from fold_in(key, i).
      label: the class of all of them, for a model given the class; None: each class in turn.
      advance: called with the network calls just made, of one batch.
      stepper: that of the rule's sampler, if there is one already.
    """
    stepper = stepper or Stepper.of(trained, rule, mesh)
    size = min(batch_size, mesh.size * math.ceil(n / mesh.size))
    key = jax.random.key(seed)
    gammas = np.asarray(rule.gammas(trained.vdm.gamma))
    split = sharding.split_over(mesh)
    per_step = rule.network_calls // rule.num_steps
    found = []
    for first in range(0, n, size):
        index = np.arange(first, first + size)
        conditioning = jax.device_put(_conditioning(trained, index, label), split)
        index = jax.device_put(index.astype(np.int32), split)
        state = stepper.begin(key, index, gammas[0])
        for i, (gamma_t, gamma_s) in enumerate(itertools.pairwise(gammas)):
            last = i == rule.num_steps - 1
            before = state
            state = stepper.move(
                trained.params, before, key, index, conditioning, i, gamma_s, gamma_t, last
            )
            before.z.block_until_ready()  # one step in flight, never a long queue
            advance(per_step)
        found.append(np.asarray(stepper.finish(state, gammas[-1])))
    return np.concatenate(found)[:n]


def _conditioning(trained: Restored, index: np.ndarray, label: int | None) -> np.ndarray:
    """[batch], no augmentation, or with a class [batch, 2]."""
    flags = np.zeros(len(index), np.float32)
    classes = trained.images.num_classes
    if not classes:
        if label is not None:
            raise UserError(f"--class={label}: {trained.name} is not conditioned on the class")
        return flags
    if label is not None and not 0 <= label < classes:
        raise UserError(f"--class={label}: the classes are 0 to {classes - 1}")
    labels = index % classes if label is None else np.full(len(index), label)
    return np.stack([flags, labels.astype(np.float32)], axis=1)


# ---- how good ----


def distances(trained: Restored, images: np.ndarray, seed: int = 0) -> list[dict[str, Any]]:
    """Two rows: how far samples, and training images, are from the test images.

    Equally many of each, the first ones, with pixels in [0, 1]. Beside each distance the mean and
    the standard deviation of what chance alone does with the same images (`twosample.permuted`).
    """
    levels, data = trained.images.levels, trained.images
    count = min(len(images), len(data.test), len(data.train), POINTS)
    measure = _Measure.of(_scaled(data.test[:count], levels))
    rows = []
    for name, points in (("samples", images), ("training images", data.train)):
        x = _scaled(points[:count], levels)
        row: dict[str, Any] = {"images": name, "count": count}
        for which, of in (("mmd", measure.mmd), ("sliced_wasserstein", measure.sliced)):
            chance = np.asarray(
                twosample.permuted(jax.random.key(seed), x, measure.held_out, of, PERMUTATIONS)
            )
            row[which] = float(of(x, measure.held_out))
            row[f"{which}_by_chance"] = [float(chance.mean()), float(chance.std(ddof=1))]
        rows.append(row)
    return rows


def quality(
    trained: Restored,
    rules: list[Rule],
    mesh: Mesh,
    sets: int = 5,
    say: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """How far each rule's samples are from the test images: one row a rule, and one of the data.

    Each rule draws `sets` sets of as many images as the test set has (1000 at most), of the seeds
    0, 1, ...; a row has the mean of their squared distances and its standard error, and the
    seconds a set took. The data's row is of sets drawn at random from the training images. The test
    images are the same in every row, so that rows compare to better than either is known.
    """
    data = trained.images
    count = min(len(data.test), len(data.train), POINTS)
    size = min(trained.batch_size, mesh.size * math.ceil(count / mesh.size))
    measure = _Measure.of(_scaled(data.test[:count], data.levels))
    rng = np.random.default_rng(0)
    chosen = [data.train[rng.permutation(len(data.train))[:count]] for _ in range(sets)]
    rows = [{"sampler": "training images", "spacing": "-", "calls": 0, "seconds": 0.0}]
    rows[0] |= measure.of_sets(chosen, data.levels)
    say(rows[0])
    steppers: dict[tuple[str, float], Stepper] = {}
    for rule in rules:
        which = rule.sampler, rule.eta
        if which not in steppers:
            steppers[which] = Stepper.of(trained, rule, mesh)
            once = dataclasses.replace(rule, num_steps=1)
            draw(trained, once, count, size, 0, mesh, stepper=steppers[which])  # compiles
        began = time.monotonic()
        drawn = [
            draw(trained, rule, count, size, seed, mesh, stepper=steppers[which])
            for seed in range(sets)
        ]
        seconds = (time.monotonic() - began) / sets
        name = rule.sampler + (f", eta = {rule.eta:g}" if rule.eta else "")
        row = {"sampler": name, "spacing": rule.spacing, "calls": rule.network_calls}
        rows.append({**row, "seconds": seconds, **measure.of_sets(drawn, data.levels)})
        say(rows[-1])
    return rows


class _Measure(NamedTuple):
    """The two squared distances to held-out points, compiled."""

    held_out: np.ndarray
    mmd: Callable[..., jax.Array]
    sliced: Callable[..., jax.Array]

    @classmethod
    def of(cls, held_out: np.ndarray) -> "_Measure":
        median = float(twosample.median_distance(held_out))
        scales = median * np.array([0.5, 1.0, 2.0], np.float32)
        size = math.prod(held_out.shape[1:])
        along = twosample.directions(jax.random.key(0), DIRECTIONS, size)
        return cls(
            held_out,
            jax.jit(lambda x, y: twosample.mmd(x, y, scales).square),
            jax.jit(lambda x, y: twosample.sliced_wasserstein(x, y, along)),
        )

    def of_sets(self, sets: list[np.ndarray], levels: int) -> dict[str, float]:
        """Mean and standard error over sets of images."""
        found: dict[str, float] = {}
        for name, of in (("mmd", self.mmd), ("sliced_wasserstein", self.sliced)):
            values = np.array([float(of(_scaled(x, levels), self.held_out)) for x in sets])
            found[name] = float(values.mean())
            found[f"{name}_error"] = float(values.std(ddof=1) / math.sqrt(len(values)))
        return found


def _scaled(images: np.ndarray, levels: int) -> np.ndarray:
    return np.asarray(images, np.float32) / max(levels - 1, 1)
