"""What the tests of compress and decompress share: a tiny run, and a file made with it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import vdmz

from vdm_jax import loss
from vdm_jax.run import pretrained, training
from vdm_jax.run import vdmz as commands
from vdm_jax.train import sharding


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """What is compiled is kept for the session and its workers: most of a run of seconds."""
    with tiny.jax_settings():
        folder = Path(os.environ["VDM_JAX_TESTS_CACHE"], "tests")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The folder of a run on digits, 8x8 of 17 levels, with checkpoints of steps 20, 40 and 60."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.config()
    config.model.update(network="mlp", head="levels")
    config.eval.final_repeats = 1
    config.sample.update(num_steps=1, count=1)
    with kept_programs(), tiny.one_device():
        training.train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def digits_vdm(digits_run):
    """Its newest checkpoint, as the codec takes it: bind, params and settings."""
    options = dict.fromkeys(("checkpoint", "official", "model", "pretrained"))
    with tiny.one_device():
        return commands.load({"workdir": str(digits_run), **options}, (8, 8, 1))[0]


@pytest.fixture(scope="session")
def digits_file(digits_run, tmp_path_factory) -> vdmz.Made:
    """Eight digits in numbers of 16 bits, and their VDMZ file."""
    folder = tmp_path_factory.mktemp("vdmz")
    np.save(folder / "digits.npy", vdmz.digits(8).astype(np.int16))
    with tiny.one_device():
        return vdmz.compress(digits_run, folder / "digits.npy", "-o", folder / "digits.vdmz")


@pytest.fixture(scope="module")
def programs_kept() -> Iterator[None]:
    with kept_programs():
        yield


@pytest.fixture(scope="module")
def compiled_once(programs_kept) -> Iterator[None]:
    """Commands on one device that share what they compile."""
    with tiny.one_device():
        yield


def bound_of(of, images, draws):
    """The mean bound of images by a model of the package, in bits per dim."""
    shape, levels, _ = pretrained.images_told(of)
    model = training.make_model(of.config, shape, levels)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    params = pretrained.parameters(of, expected, sharding.make_mesh(jax.devices()[:1]))
    bound = jax.jit(lambda params, key: model.bind(params).elbo(key, jnp.asarray(images)).total)
    nats = np.mean([bound(params, jax.random.key(n)) for n in range(draws)])
    return loss.bits_per_dim(nats, shape)
