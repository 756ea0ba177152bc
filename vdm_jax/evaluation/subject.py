"""A trained model with the dataset that it is evaluated on."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from jax.sharding import Mesh

from vdm_jax import data
from vdm_jax.data.image_data import UNCONDITIONAL, Condition
from vdm_jax.errors import UserError
from vdm_jax.train.model import Bound, Model, Params
from vdm_jax.vdm import VDM

Batches = Callable[[], Iterable[Mapping[str, np.ndarray]]]


class Subject(NamedTuple):
    """A model with its parameters, a dataset, and the devices to evaluate it on.

    Parameters lie as `train.sharding.of_parameters` has them; a batch is over all devices. What
    follows is known of a restored model: its `name` and training step, `config.model` of the run or
    of the published code, the name of the images that count as test images, how many draws of each
    its configuration asks for, and of a model alone the kind of its condition.
    """

    model: Model
    params: Params
    images: Any  # ImageData, or None for a model alone
    batch_size: int
    mesh: Mesh
    name: str = ""
    step: int = 0
    settings: Mapping[str, Any] = MappingProxyType({})
    part: str = "test"
    repeats: int = 0
    condition: Condition = UNCONDITIONAL

    @property
    def bound(self) -> Bound:
        """The model with these parameters."""
        return cast(Bound, self.model.bind(self.params))

    @property
    def vdm(self) -> VDM:
        """The model as a VDM. Raises UserError if it is of another kind."""
        bound = self.bound
        if not isinstance(bound, VDM):
            raise UserError(f"{self.name} is no VDM: {bound.words}")
        return bound

    @property
    def groups(self) -> np.ndarray | None:
        """Label of each test image where some belong together, for `estimate`."""
        return (self.images.source or {}).get("test")

    def batches(self, part: str = "test") -> Batches:
        """Returns one exact pass over a part, as often as the result is called."""
        examples = self.images.examples(part)
        flags = np.zeros(len(examples["images"]))
        examples |= {"conditioning": data.flagged(flags, examples["conditioning"])}
        return lambda: data.eval_batches(examples, batch_size=self.batch_size)

    def calls(self, repeats: int, part: str = "test") -> int:
        """Returns the number of calls of a step, for so many repeats of a part's batches."""
        return repeats * -(-len(getattr(self.images, part)) // self.batch_size)

    def first(self, count: int | None, part: str = "test") -> "Subject":
        """Returns the subject with the first `count` images of a part; None leaves all."""
        changes: dict[str, Any] = {part: getattr(self.images, part)[:count]}
        for name in ("source", "labels", "conditions"):
            if part in (by_part := getattr(self.images, name) or {}):
                changes[name] = {**by_part, part: by_part[part][:count]}
        return self._replace(images=dataclasses.replace(self.images, **changes))

    def at(self, num_steps: int | None) -> "Subject":
        """Returns the subject whose VDM has another number of steps."""
        return self._replace(model=self.model.with_fields(num_steps=num_steps))
