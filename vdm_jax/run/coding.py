"""What compress and decompress share: the model as the codec takes it, and how they talk."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from vdm_jax.compression import Progress, Vdm
from vdm_jax.data import DataError
from vdm_jax.errors import UserError, reaching, user_path
from vdm_jax.run import build as setup
from vdm_jax.run import cli, restore
from vdm_jax.train import sharding
from vdm_jax.train.model import Model, Params
from vdm_jax.train.progress import Bar
from vdm_jax.types import PerExample, Tensor
from vdm_jax.vdm import VDM

__all__ = ["define_flags", "free", "load", "progress"]

# Of the configuration: what of `config.model` says which function the parameters stand for.
_FUNCTION = (
    "network", "head", "channels", "num_blocks", "attention", "fourier_features", "gamma",
    "gamma_min", "gamma_max", "gamma_pinned", "learn_end_points",
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Those that name the model."""
    text, _, _ = cli.definers(values)
    text("workdir", "folder of the run: its config.json and checkpoints are all that is needed")
    text("checkpoint", "a step of the run, or a checkpoint's folder; the newest if not given")
    text("official", "in place of --workdir: a published checkpoint, ckpt-N.flax or its folder")
    text("model", "its configuration: cifar10, cifar10_aug, imagenet32, imagenet64, or a JSON file")


def load(options: Mapping[str, Any], shape: tuple[int, int, int] | None = None) -> tuple[Vdm, str]:
    """The model that the flags name, and its name in reports; no data set is needed.

    A published model is for images of any size, here of `shape`. Raises UserError for a model that
    can't compress.
    """
    with jax.enable_x64(False):  # as it was trained, whatever JAX_ENABLE_X64 says
        # Parameters are float32; in float64 nothing narrower may come between.
        of = restore.load(options, _one_device(), shape, dtype="float32")
    if of.num_classes:
        raise UserError(
            f"the run in {of.name} is conditioned on the class of an image, which images to be "
            "compressed don't have; train one without --config.data.class_labels"
        )
    facts = of.model.facts()
    if not isinstance(facts, VDM) or facts.levels is None:
        raise UserError(
            f"the run in {of.name} is no VDM of pixel levels ({facts.words}); only those compress"
        )
    names = of.settings if options["official"] else _FUNCTION
    settings = {name: of.settings[name] for name in names}
    return _vdm(of.model, of.params, settings), f"{of.name}, step {of.step}"


def _vdm(model: Model, params: Params, settings: Mapping[str, Any]) -> Vdm:
    params = jax.device_get(params)

    def denoise(given: Params, z_t: Tensor, gamma_t: PerExample) -> Any:
        return model.bind(given).denoise(z_t, gamma_t)

    bound: VDM = model.bind(params)
    assert bound.levels is not None
    height, width, channels = bound.event_shape
    return Vdm(
        denoise, params, bound.gamma, (height, width, channels), bound.levels, bound.kind,
        bound.reverse_var,
        settings,
    )  # fmt: skip


def _one_device() -> Mesh:
    return sharding.make_mesh(setup.make_mesh().devices.reshape(-1).tolist()[:1])


@contextlib.contextmanager
def progress(words: str) -> Iterator[Progress]:
    """A bar of images; it begins anew if the codec does."""
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []
        told = [0]

        def tell(done: int, of: int) -> None:
            if not bars or done <= told[0]:
                stack.close()  # of two live bars neither can be read
                bars.append(stack.enter_context(Bar(words, of)))
                told[0] = 0
            bars[-1].advance(done - told[0])
            told[0] = done

        yield tell


def free(given: str | None, flag: str) -> Path:
    """A path to write to. Raises UserError if something is there already."""
    if not given:
        raise UserError(f"{flag} is missing: what to write")
    try:
        out = user_path(given, flag.split()[0])
    except DataError as error:
        raise UserError(str(error)) from error
    with reaching(out):
        if os.path.lexists(out):
            raise UserError(f"{out} is there already; name another, or remove it")
        if not out.parent.is_dir():
            raise UserError(f"{out.parent} is no folder; make it first, or write somewhere else")
    return out
