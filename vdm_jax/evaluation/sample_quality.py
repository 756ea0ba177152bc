"""Samples of a trained model by any sampler, step by step, and how good they are."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vdm_jax import sampler, solvers, spacing
from vdm_jax.data import ImageData
from vdm_jax.evaluation import sample_distances
from vdm_jax.evaluation.sample_distances import DISTANCES
from vdm_jax.evaluation.subject import Subject
from vdm_jax.solvers import Sampler, State
from vdm_jax.spacing import Spacing
from vdm_jax.train import sharding
from vdm_jax.train.model import Params
from vdm_jax.types import Key

__all__ = ["Rule", "Stepper", "distances", "draw", "quality"]

POINTS = 1000  # of each sample, at most, that distances are measured with
DIRECTIONS = 256
PERMUTATIONS = 50

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How to sample: see `vdm_jax.solvers.step` and `vdm_jax.spacing.table`."""

    sampler: Sampler
    num_steps: int
    spacing: Spacing
    eta: float = 0.0

    @property
    def network_calls(self) -> int:
        """The number of calls of the network for each sample."""
        return solvers.network_calls(self.sampler, self.num_steps)


class Stepper(NamedTuple):
    """A sampler of one model, compiled: the loop over steps stays outside.

    So a progress bar can be shown; and on a CPU some networks are slower within a compiled loop.
    """

    begin: Callable[..., State]
    """(index [batch], key, gamma_1) -> the state at t = 1; all samples' noise is of their index."""
    move: Callable[..., State]
    """(params, state, index, conditioning, key, (i, gamma_s, gamma_t, last)) -> the next state."""
    finish: Callable[..., jax.Array]
    """(state, gamma_0) -> integers in [0, levels), [batch, *event], on all devices."""

    @classmethod
    def of(cls, subject: Subject, name: Sampler, eta: float) -> "Stepper":
        """Returns it for batches that are split over the devices."""
        vdm, levels = subject.vdm, subject.images.levels
        noisy = solvers.needs_noise(name, eta)
        whole, split = sharding.replicated(subject.mesh), sharding.split_over(subject.mesh)

        def keys(key: Key, index: jax.Array) -> Key:
            return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

        def begin(index: jax.Array, key: Key, gamma_1: jax.Array) -> State:
            return solvers.start(solvers.initial(keys(key, index), vdm.event_shape), gamma_1)

        def move(
            params: Params, state: State, index: jax.Array, conditioning: jax.Array, key: Key,
            at: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
        ) -> State:  # fmt: skip
            i, gamma_s, gamma_t, last = at
            denoise = subject.model.bind(params, conditioning).denoise
            eps = solvers.noise(keys(key, index), i, vdm.event_shape) if noisy else None
            return solvers.step(
                state, eps, denoise, gamma_s, gamma_t, name, vdm.kind, vdm.reverse_var, eta, last
            )

        def finish(state: State, gamma_0: jax.Array) -> jax.Array:
            return sampler.to_images(state.z, gamma_0, levels)

        states = State._make((split, split, whole))
        given = (whole, states, split, split, whole, whole)
        return cls(
            jax.jit(begin, in_shardings=(split, whole, whole), out_shardings=states),
            jax.jit(move, in_shardings=given, out_shardings=states),
            jax.jit(finish, in_shardings=(states, whole), out_shardings=whole),
        )


def draw(
    subject: Subject,
    rule: Rule,
    n: int,
    seed: int,
    label: int | None = None,
    advance: Callable[[int], None] = lambda calls: None,
    stepper: Stepper | None = None,
) -> np.ndarray:
    """Returns `n` samples, integers [n, *event]; the same whatever the batch size and the devices.

    Args:
      subject: a VDM. Its batch size, which the devices must share evenly, need not divide `n`.
      rule: how.
      n: how many.
      seed: settles all noise; sample number i is that of `vdm_jax.solvers.sample` with this key.
      label: the class of all of them, for a model given the class; None: each class in turn.
      advance: called with the network calls just made, of one batch.
      stepper: that of the rule's sampler, if there is one already.
    """
    stepper = stepper or Stepper.of(subject, rule.sampler, rule.eta)
    size = min(subject.batch_size, subject.mesh.size * math.ceil(n / subject.mesh.size))
    key = jax.random.key(seed)
    gammas = np.asarray(spacing.table(subject.vdm.gamma, rule.num_steps, rule.spacing))
    split = sharding.split_over(subject.mesh)
    found = []
    for first in range(0, n, size):
        numbers = np.arange(first, first + size)
        given = _conditioning(numbers, label, subject.images.num_classes)
        conditioning, index = jax.device_put((given, numbers.astype(np.int32)), split)
        state = stepper.begin(index, key, gammas[0])
        for i, (gamma_t, gamma_s) in enumerate(itertools.pairwise(gammas)):
            before, at = state, (i, gamma_s, gamma_t, i == rule.num_steps - 1)
            state = stepper.move(subject.params, before, index, conditioning, key, at)
            before.z.block_until_ready()  # one step in flight, never a long queue
            advance(rule.network_calls // rule.num_steps)
        found.append(np.asarray(stepper.finish(state, gammas[-1])))
    return np.concatenate(found)[:n]


def _conditioning(index: np.ndarray, label: int | None, classes: int) -> np.ndarray:
    """Returns [batch], no augmentation, or with a class [batch, 2]."""
    flags = np.zeros(len(index), np.float32)
    if not classes:
        return flags
    labels = index % classes if label is None else np.full(len(index), label)
    return np.stack([flags, labels.astype(np.float32)], axis=1)


# ---- how good ----


class _Measure(NamedTuple):
    """The squared distances to held-out points, compiled, by name."""

    levels: int
    held_out: np.ndarray
    by_name: Mapping[str, Callable[..., jax.Array]]

    @classmethod
    def of(cls, held_out: np.ndarray, levels: int) -> "_Measure":
        points = _scaled(held_out, levels)
        scales = float(sample_distances.median_distance(points)) * np.array([0.5, 1, 2], np.float32)
        size = math.prod(points.shape[1:])
        along = sample_distances.directions(jax.random.key(0), DIRECTIONS, size)
        functions = (
            jax.jit(lambda x, y: sample_distances.mmd(x, y, scales).square),
            jax.jit(lambda x, y: sample_distances.sliced_wasserstein(x, y, along)),
        )
        return cls(levels, points, dict(zip(DISTANCES, functions, strict=True)))

    def of_sets(self, sets: list[np.ndarray]) -> dict[str, float]:
        """Returns mean and standard error over sets of images."""
        found: dict[str, float] = {}
        for name, of in self.by_name.items():
            values = np.array([float(of(_scaled(x, self.levels), self.held_out)) for x in sets])
            found[name] = float(values.mean())
            found[f"{name}_error"] = float(values.std(ddof=1) / math.sqrt(len(values)))
        return found


def _scaled(images: np.ndarray, levels: int) -> np.ndarray:
    return np.asarray(images, np.float32) / max(levels - 1, 1)


def distances(data: ImageData, images: np.ndarray, seed: int = 0) -> list[Row]:
    """Returns two rows: how far samples, and training images, are from the test images.

    Equally many of each, the first ones, with pixels in [0, 1]. Beside each distance the mean and
    the standard deviation of what chance alone does with the same images
    (`sample_distances.permuted`).
    """
    count = min(len(images), len(data.test), len(data.train), POINTS)
    measure = _Measure.of(data.test[:count], data.levels)
    rows = []
    for name, points in (("samples", images), ("training images", data.train)):
        x = _scaled(points[:count], data.levels)
        row: Row = {"images": name, "count": count}
        for which, of in measure.by_name.items():
            by_chance = sample_distances.permuted(
                jax.random.key(seed), x, measure.held_out, of, PERMUTATIONS
            )
            chance = np.asarray(by_chance)
            row[which] = float(of(x, measure.held_out))
            row[f"{which}_by_chance"] = [float(chance.mean()), float(chance.std(ddof=1))]
        rows.append(row)
    return rows


def quality(
    subject: Subject,
    rules: list[Rule],
    sets: int = 5,
    say: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> list[Row]:
    """Returns how far each rule's samples are from the test images: a row a rule, after the data's.

    Each rule draws `sets` sets of as many images as the test set has (1000 at most), of the seeds
    0, 1, ...; a row has the mean of their squared distances and its standard error, and the
    seconds a set took. The data's row is of sets drawn at random from the training images. The test
    images are the same in every row, so that rows compare to better than either is known.
    """
    data = subject.images
    count = min(len(data.test), len(data.train), POINTS)
    measure = _Measure.of(data.test[:count], data.levels)
    rng = np.random.default_rng(0)
    chosen = [data.train[rng.permutation(len(data.train))[:count]] for _ in range(sets)]
    rows: list[Row] = []

    def add(name: str, spacing: str, calls: int, seconds: float, sets: list[np.ndarray]) -> None:
        row = {"sampler": name, "spacing": spacing, "calls": calls, "seconds": seconds}
        rows.append(row | measure.of_sets(sets))
        say(rows[-1])

    add("training images", "-", 0, 0.0, chosen)
    steppers: dict[tuple[Sampler, float], Stepper] = {}
    for rule in rules:
        which = rule.sampler, rule.eta
        if which not in steppers:
            steppers[which] = Stepper.of(subject, *which)
            once = dataclasses.replace(rule, num_steps=1)
            draw(subject, once, count, 0, stepper=steppers[which])  # compiles
        began = time.monotonic()
        drawn = [draw(subject, rule, count, seed, stepper=steppers[which]) for seed in range(sets)]
        seconds = (time.monotonic() - began) / sets
        name = rule.sampler + (f", eta = {rule.eta:g}" if rule.eta else "")
        add(name, rule.spacing, rule.network_calls, seconds, drawn)
    return rows
