"""The data, the devices and the folder, with which training and evaluation both begin."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
from filelock import FileLock, Timeout
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vdm_jax import data, files
from vdm_jax.data import ImageData
from vdm_jax.errors import UserError
from vdm_jax.run import distributed
from vdm_jax.train import sharding


def make_mesh(shard_params: int = 1, flag: str = "config.train.shard_params") -> Mesh:
    """Returns a mesh of all devices, the parameters over `shard_params`, which `flag` gave.

    Raises UserError if that can't be.
    """
    try:
        devices = jax.devices()
    except Exception as error:  # JAX raises several kinds
        platforms = os.environ.get("JAX_PLATFORMS", "")
        said = f"JAX finds no device to run on (JAX_PLATFORMS={platforms!r})"
        hint = "unset it for the CPU, or install jax for the accelerator, as pip install '.[cuda]'"
        raise UserError(f"{said}: {hint}") from error
    # Process by process, as the batches are; on a pod JAX may number them otherwise.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise UserError(f"each process must have as many devices; they have {dict(counts)}")
    try:
        return sharding.make_mesh(devices, shard_params)
    except ValueError as error:
        raise UserError(f"--{flag}: {error}") from error


def check_batch_size(
    size: int, mesh: Mesh, accumulate: int = 1, name: str = "--batch_size"
) -> None:
    """Raises UserError, which has `name`, unless each device gets a share of each micro-batch."""
    if size % (mesh.size * accumulate):
        said = f"batch size {size} can't be split evenly into {accumulate} micro-batch(es) on"
        wanted = f"wanted a multiple of {mesh.size * accumulate}"
        raise UserError(f"{name}: {said} {mesh.size} device(s): {wanted}")


def load(config: ConfigDict) -> ImageData:
    """Returns the dataset of `config.data`, labelled if the network is conditioned on labels."""
    d = config.data
    folder = data.FolderOptions(d.size, d.fit, d.channels, d.held_out)
    given = {"data_dir": d.dir, "manual_dir": d.manual_dir, "path": d.path, "levels": d.levels}
    images = distributed.in_turn(
        lambda: data.load(d.name, **given, folder=folder, class_labels=d.class_labels)
    )
    if not d.class_labels:  # from here on there are labels only where they are used
        images = dataclasses.replace(images, labels=None, label_names=())
    elif images.conditions is not None:
        said = f"data.class_labels is set, but {images.name} has a condition of its own"
        raise UserError(f"config.{said}; put the class into that, and leave class_labels out")
    return data.validation_split(images, d.validation) if d.validation else images


def make_workdir(workdir: Path, flag: str = "workdir") -> Path:
    """Returns the folder, made if need be, as an absolute path.

    Raises UserError, which names `flag`, if that can't be, or if not all processes share it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.try_writing(workdir)
    except OSError as error:  # as where it is a file
        why = f"can't be made or written: {error.strerror or error}; name another folder"
        raise UserError(f"--{flag}={workdir} {why}") from error
    distributed.check_shared(workdir, flag)
    return workdir.absolute()


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Holds `workdir` within the block; the system lets it go however the process ends.

    Raises UserError, naming who holds it, if another process does. Warns where there are no locks.
    """
    holder = workdir / ".holder"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(workdir / ".lock", timeout=0))
        except Timeout:
            who = holder.read_text(encoding="utf-8").strip() if holder.exists() else "just starting"
            said = f"--workdir={workdir} is in use by another run ({who})"
            raise UserError(f"{said}: wait until it ends, stop it, or give another") from None
        except NotImplementedError as error:  # flock isn't there
            print(f"warning: {workdir} can't be locked ({error}): start no second run in it")
        files.write(holder, f"process {os.getpid()} on {platform.node()}\n")
        files.remove_partials(workdir)
        files.remove_partials(workdir / "samples")
        yield


def eval_name(config: ConfigDict) -> str:
    """Returns the name of the images on which a run with `config` is evaluated."""
    return "validation" if config.data.validation else "test"


def describe(images: ImageData) -> dict[str, object]:
    """Returns the facts of a dataset that reports and checkpoints hold."""
    found: dict[str, object] = {"name": images.name, "fingerprint": images.fingerprint}
    found |= {"train": len(images.train), "test": len(images.test)}
    found |= {"event_shape": list(images.event_shape), "levels": images.levels}
    told = images.condition
    for size, key, of in (("classes", "labels", images.labels),
                          ("condition", "conditions", images.conditions)):  # fmt: skip
        if of is not None:
            parts = b"".join(of[part].tobytes() for part in ("train", "test"))
            found |= {size: told.size, key: hashlib.sha256(parts).hexdigest()}
    return found
