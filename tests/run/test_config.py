"""Settings that can't be run are refused, each by its name; where their bounds lie."""

import math
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.configs import (
    arrays,
    binomial,
    cifar10,
    digits,
    folder,
    imagenet32,
    imagenet64,
    mhvae,
    mnist,
    photos,
    vae,
)
from vdm_jax.data import Condition, ImageData, validation_split
from vdm_jax.errors import UserError
from vdm_jax.run import defaults
from vdm_jax.run.config import check_config, check_devices, check_model, check_training
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding

CONFIGS = {"digits": digits, "vae": vae, "mhvae": mhvae, "binomial": binomial}
LEVELS = {"binomial": 2}
VDM = {"hierarchy.data_size": True, "hierarchy.fixed_encoder": True}


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32, None, 1.0], "config.seed must"),
        ("optimizer.learning_rate", [1e-30], [0.0, -1.0, math.nan, math.inf, 1e-50, 1e300],
         "config.optimizer.learning_rate must be finite and above 0, got"),
        ("optimizer.b1", [0.0, 0.5], [1.0, 1 - 1e-9, -0.1, math.nan], "must lie in [0, 1)"),
        ("optimizer.b2", [0.0], [1.0], "must lie in [0, 1)"),
        ("optimizer.ema_rate", [0.0, 0.99999], [1.0, 1 - 1e-9], "must lie in [0, 1)"),
        ("optimizer.eps", [1e-30], [0.0, 1e-46], "be finite and above 0"),
        ("optimizer.clip_norm", [None, 1e-9], [0.0, math.inf, math.nan], "above 0, or None"),
        ("optimizer.decay_steps", [None, 300], [0, -1, 2**31], "config.optimizer.decay_steps must"),
        ("optimizer.warmup_steps", [0], [-1, 2**31], "config.optimizer.warmup_steps must"),
        ("optimizer.weight_decay", [0.0], [-0.1, math.nan, math.inf], "must not be negative"),
        ("model.dropout", [0.0, 0.9], [1.0, -0.5, math.nan], "must lie in [0, 1)"),
        ("model.gamma_min", [-40.0], [-40.1, 5.0, 6.0, math.nan, -math.inf], "below gamma_max"),
        ("model.gamma_max", [40.0], [40.1, -8.0, math.nan, math.inf], "both in [-40, 40]"),
        ("model.num_steps", [None, 1, 2**23], [0, -1, 2**23 + 1], "config.model.num_steps must"),
        ("model.num_blocks", [1, 1000], [0, 1001, 10**9], "config.model.num_blocks must"),
        ("model.channels", [1, 2**16], [0, -1, 2**16 + 1, 10**18], "config.model.channels must"),
        ("train.steps", [1, 2**31 - 1], [0, -5, 2**31, 10**30, None], "config.train.steps must"),
        ("train.batch_size", [1, 10**6], [0, 10**6 + 1, 2**40], "config.train.batch_size must"),
        ("train.steps_per_call", [10**5], [10**5 + 1], "must be at most 100000"),
        ("train.max_skipped", [1], [0], "config.train.max_skipped must"),
        ("eval.batch_size", [1, 10**6], [0, 10**6 + 1], "config.eval.batch_size must"),
        ("eval.repeats", [1, 10**7], [0, 10**7 + 1], "config.eval.repeats must"),
        ("eval.final_repeats", [1, 10**7], [0, 10**7 + 1], "config.eval.final_repeats must"),
        ("sample.count", [1, 10**5], [0, 10**5 + 1], "config.sample.count must"),
        ("sample.num_steps", [1, 10**7], [0, 10**7 + 1], "config.sample.num_steps must"),
        ("hierarchy.depth", [None, 1000], [1001], "config.hierarchy.depth must be at most 1000"),
        ("hierarchy.latent_size", [1, 2**20], [0, 2**20 + 1], "config.hierarchy.latent_size must"),
        ("data.levels", [17], [0, -1, 10**30], "config.data.levels must"),
        ("data.validation", [0, 1], [-1, 2**31], "config.data.validation must"),
        ("data.name", ["x"], ["cifar\n10", None, "a\0b"], "config.data.name must be"),
        ("data.path", [None, ""], [5, {"a": 1}, "n\t" * 200], "config.data.path must be"),
        ("train", [], [3, None], "config.train must be a group of settings, got"),
        ("seed", [], [{"a": 1}], "config.seed must be int, got a: 1"),
        ("train.more", [], [1], "config.train.more is no setting"),
    ],
)  # fmt: skip
def test_where_the_bounds_of_a_setting_lie(name, good, bad, message):
    for value in good + bad:
        config = digits.get_config()
        *parts, last = name.split(".")
        part = config[parts[0]] if parts else config
        with part.ignore_type():
            part[last] = value
        if value in good:
            check_config(config)
            continue
        with pytest.raises(UserError) as refused:
            check_config(config)
        said = str(refused.value)
        assert message in said and "\n" not in said and len(said) < 400, value


def test_a_setting_that_is_missing_and_the_saved_zero_of_a_run_without_decay():
    config = digits.get_config().to_dict()
    del config["train"]["steps"]
    with pytest.raises(UserError, match=r"config\.train\.steps is missing"):
        check_config(ConfigDict(config))
    config = defaults.get_config()
    config.optimizer.update(decay="none", decay_steps=0)
    check_config(config)
    config.optimizer.decay = "linear"
    with pytest.raises(UserError, match=r"config\.optimizer\.decay_steps must be above 0"):
        check_config(config)


SHAPE_OF_GAMMA = {"model.gamma_objective": "variance", "model.gamma": "monotone"}
PYRAMID = {"model.network": "pyramid", "model.channels": 8, "model.head": "eps"}
DIGITS = [
    ({"model.contrasts": "1"}, "config.model.contrasts is '1', for pyramid only; leave it out"),
    (PYRAMID | {"model.multipliers": "1,x"},
     "config.model.multipliers is '1,x'; wanted numbers above 0, as '1,2,3'"),
    (PYRAMID | {"model.contrasts": "0,1"},
     "config.model.contrasts is '0,1'; wanted numbers above 0, as '0.1,1,10'"),
    (PYRAMID | {"model.multipliers": "1,1,1,1,1", "model.blocks": "1,1,1,1,1"},
     "config.model: height and width must be multiples of 16 for a Pyramid of 5 resolutions, "
     "got 8x8"),
    (PYRAMID | {"model.head": "levels"}, "filters give eps: give --config.model.head=eps"),
    ({"model.decoder": "exact"}, "decoder is 'exact'; known: discretised, density"),
    ({"model.gamma": "cosine"}, "config.model: the schedule must be one of"),
    ({"model.dtype": "bfloat16"}, "config.model.dtype is 'bfloat16', for unet and pyramid only"),
    ({"model.network": "unet", "model.fused_attention": True}, "bfloat16; this is float32"),
    ({"model.network": "unet"}, "config.model.channels is 32; the unet normalises"),
    ({"model.network": "unet", "model.channels": 80}, "config.model.channels is 80; the unet"),
    ({"model.channels": 2}, "multiple of 4, got 2"),
    ({"model.reverse_var": "learned"}, "makes no difference: give a number of steps"),
    ({"model.head": "logits"}, "head is 'logits' and process 'gaussian': the head"),
    ({"model.decoder": "density", "model.gamma": "monotone"}, "no best gamma_0"),
    ({"model.gamma_objective": "variance"}, "config.model.gamma to be monotone, got fixed"),
    (SHAPE_OF_GAMMA | {"model.num_steps": 5}, "num_steps to be None, got 5"),
    (SHAPE_OF_GAMMA | {"model.gamma_pinned": False}, "gamma_pinned to be True"),
    (
        {"model.gamma": "monotone", "model.gamma_pinned": False, "model.learn_end_points": False},
        "needs pinned=True",
    ),
    (SHAPE_OF_GAMMA | {"model.timesteps": "adaptive"}, "objective to be bound, got variance"),
    ({"model.weighting": "v", "model.gamma": "scalar"}, "gamma to be fixed, got scalar"),
    ({"model.weighting": "v", "model.num_steps": 5}, "'v', which needs config.model.num_steps"),
    ({"model.transform": "haar"}, "transform is 'haar'; known: none, dct, haar-1, haar-2, ..."),
    ({"model.transform": "dct"}, "model.transform dct: give --config.model.head=eps, x, v"),
    ({"model.transform": "haar-9", "model.head": "eps"}, "sizes that 2^9 divides"),
    ({"model.transform": "dct", "model.head": "eps", "model.num_steps": 5,
      "model.reverse_var": "learned"}, "transform dct: give --config.model.reverse_var=posterior"),
    ({"hierarchy.latent_size": 8}, "there is no hierarchy: give hierarchy.depth=L"),
    ({"hierarchy.ends_at_normal": True}, "config.hierarchy.ends_at_normal is set, but there is"),
    ({"model.gamma": "conditional_path"},
     "config.model.gamma is conditional_path, but the data have no condition: leave it out, or"),
    ({"model.gamma": "conditional_path", "model.gamma_objective": "variance", "classes": 3},
     "'variance', which needs config.model.gamma to be monotone, got conditional_path"),
]  # fmt: skip
BINOMIAL = [
    ({"model.condition_dropout": 0.1}, "condition_dropout is 0.1, but the data have no condition"),
    ({"model.head": "levels"}, "head is 'levels' and process 'binomial'"),
    ({"model.num_steps": None}, "'binomial', which needs config.model.num_steps"),
    ({"model.gamma": "monotone"}, "needs config.model.gamma to be fixed, got monotone"),
    ({"model.timesteps": "adaptive"}, "config.model.process to be gaussian, got binomial"),
    ({"model.fourier_features": True}, "config.model.fourier_features to be False, got True"),
    ({"hierarchy.depth": 2}, "'binomial', which goes with no hierarchy"),
    ({"levels": 17}, "of 2 levels; these have 17 (--config.data.name=digits_binary has 2)"),
]
VAE = [
    ({"hierarchy.depth": 0}, "hierarchy.depth must be at least 1, got 0"),
    (VDM, "depth must be at least 2"),
    ({"model.num_steps": 5}, "num_steps is 5, but a hierarchy has its depth; leave"),
    ({"model.network": "resnet"},
     "a hierarchical VAE, which needs config.model.network to be mlp, got resnet"),
    ({"model.fourier_features": True}, "config.model.fourier_features to be False, got True"),
    ({"model.reverse_var": "learned"}, "to be posterior, got learned: its own networks"),
    ({"model.timesteps": "uniform"}, "a hierarchy draws no times: leave it out"),
    ({"model.weighting": "v"}, "weighting is 'v', but a hierarchy draws no times: leave it out"),
    ({"model.gamma_max": 4.0}, "gamma_max is 4.0, which nothing reads here"),
    ({"model.attention": "all"}, "attention is all, which nothing reads here"),
    ({"hierarchy.ends_at_normal": True, "model.gamma_max": 2.0}, "where the latent is not N(0, I)"),
    ({"hierarchy.data_size": True, "hierarchy.latent_size": 8}, "8, but data_size is set"),
    ({"classes": 10}, "data: a hierarchical VAE is not conditioned on classes"),
    ({"numbers": 2}, "data: a hierarchical VAE is not conditioned on classes or numbers"),
    ({"hierarchy.latent_size": 65, "hierarchy.fixed_encoder": True},
     "config.model, config.hierarchy: latent_size is 65, but x has 64 elements"),
]  # fmt: skip
MHVAE = [
    (VDM | {"hierarchy.ends_at_normal": True, "model.gamma_max": 5.0, "model.gamma": "path"},
     "config.model.gamma is 'path', for the VDM only"),
    (VDM | {"hierarchy.ends_at_normal": True, "model.gamma": "conditional_path", "classes": 3},
     "config.model.gamma is 'conditional_path', for the VDM only"),
    (VDM | {"model.num_steps": 5}, "num_steps is 5, but a hierarchy has its depth; leave it out"),
    (VDM | {"model.gamma": "scalar"}, "gamma is 'scalar', whose end would be learned, but without"),
    (VDM | {"model.gamma": "monotone", "model.gamma_objective": "variance"},
     "config.model.gamma_objective is 'variance': a hierarchy's bound has no times"),
    ({"hierarchy.fixed_encoder": True, "model.gamma_min": 1.0},
     "config.hierarchy: no schedule rises from gamma_min (1.0) up to 0.0"),
]  # fmt: skip


CASES = {"digits": DIGITS, "binomial": BINOMIAL, "vae": VAE, "mhvae": MHVAE}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_settings_that_do_not_go_together(name, changes, message):
    config, changes = CONFIGS[name].get_config(), dict(changes)
    condition = Condition(changes.pop("classes", 0), changes.pop("numbers", 0))
    levels = changes.pop("levels", LEVELS.get(name, 17))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        make_model(config, (8, 8, 1), levels, condition)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config.")


def test_the_devices_must_fit():
    config = digits.get_config()
    config.model.update(network="unet", fused_attention=True, dtype="bfloat16", channels=64)
    make_model(config, (8, 8, 1), 17)  # a run of a GPU can be evaluated anywhere
    mesh = sharding.make_mesh()
    with pytest.raises(UserError, match="fused_attention is cuDNN's, for a GPU; this is a cpu"):
        check_devices(config, mesh)
    config = digits.get_config()
    config.train.batch_size, config.eval.batch_size = 8 * mesh.size, 8 * mesh.size
    check_devices(config, mesh)
    config.train.accumulate = 16
    with pytest.raises(UserError, match=r"^config\.train\.batch_size: .*into 16 micro-batch"):
        check_devices(config, mesh)
    config.train.accumulate, config.eval.batch_size = 8, 8 * mesh.size + 1
    with pytest.raises(UserError, match=r"^config\.eval\.batch_size: "):
        check_devices(config, mesh)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits", {"model.dropout": 0.5}, "model.dropout is 0.5, and the resnet drops twice as"),
        ("vae", {"data.augment": "shift"}, "data.augment is 'shift', but a hierarchical VAE isn't"),
        (
            "digits",
            {"model.gamma": "scalar", "model.learn_end_points": False},
            "model.learn_end_points is False, but config.model.gamma=scalar is two end points",
        ),
        (
            "digits",
            {"optimizer.decay": "none", "optimizer.decay_steps": 7},
            "optimizer.decay_steps is 7, but there is no d",
        ),
        ("digits", {"data.manual_dir": "/typo"}, "data.manual_dir='/typo' is for published arch"),
        ("digits", {"model.gamma_pinned": False}, "model.gamma_pinned is False, which nothing"),
        ("digits", {"model.attention": "all"}, "model.attention is all, which nothing reads"),
        ("digits", {"data.validation": 2}, "data.validation=2 holds out all images of class 'b'"),
    ],
)
def test_what_can_be_evaluated_but_should_not_be_trained(name, changes, message):
    config, x = CONFIGS[name].get_config(), np.zeros((4, 8, 8, 1), np.uint8)
    labels = {"train": np.array([0, 0, 1, 1]), "test": np.array([0])}
    images = ImageData("x", x, x[:1], 17, "", None, labels, ("a", "b"))
    check_training(config, images)
    config.update_from_flattened_dict(changes)
    if config.data.validation:
        images = validation_split(images, 2)
    check_config(config)
    make_model(config, (8, 8, 1), 17)
    with pytest.raises(UserError, match=re.escape(f"config.{message}")):
        check_training(config, images)


def test_with_all_its_networks_a_vdm_as_hierarchy_takes_what_a_vdm_takes():
    config = mhvae.get_config()
    config.update_from_flattened_dict(VDM)
    config.model.update(network="resnet", channels=8, head="levels", reverse_var="learned")
    assert "VDM of T = 3" not in make_model(config, (8, 8, 1), 17, Condition(10)).facts().words
    config.hierarchy.ends_at_normal = True
    config.model.gamma = "monotone"
    words = make_model(config, (8, 8, 1), 17, Condition(10)).facts().words
    assert words.endswith(", a VDM of T = 3")


# ---- the experiments' own ----


def test_the_experiments_own_configurations_are_accepted():
    for module in (arrays, binomial, digits, folder, mhvae, mnist, vae):
        check_config(module.get_config())
    for depth, width in (("2", 196), ("8", 92)):
        config = mhvae.get_config(depth)
        check_config(config)
        assert (config.hierarchy.depth, config.model.channels) == (int(depth), width)
    for name, module in CONFIGS.items():
        check_model(module.get_config(), LEVELS.get(name, 17), Condition())
    with pytest.raises(ValueError, match="depth '3'; known: 2, 4, 8"):
        mhvae.get_config("3")


def published(config):
    """What all the published configurations have alike."""
    check_config(config)
    m, o = config.model, config.optimizer
    assert (m.gamma_min, m.gamma_max, m.num_steps, m.fourier_features) == (-13.3, 5.0, None, True)
    assert (o.b1, o.b2, o.eps, o.weight_decay, o.ema_rate) == (0.9, 0.99, 1e-8, 0.01, 0.9999)
    assert (o.warmup_steps, o.decay, o.clip_norm) == (100, "none", None)
    return (
        config.data.name, m.channels, m.num_blocks, m.dropout, m.gamma, m.attention,
        config.train.batch_size, o.learning_rate, config.train.steps, config.data.augment,
    )  # fmt: skip


def test_the_published_hyperparameters():
    million, old, new = 10**6, "downsampled_imagenet/", "imagenet_resized/"
    plain = ("scalar", "middle", 128, 2e-4, 10 * million, "none")
    aug = (100 * million, "flip_rot90")
    assert [published(cifar10.get_config(variant)) for variant in ("", "aug", "aug_paper")] == [
        ("cifar10", 128, 32, 0.1, *plain),
        ("cifar10", 256, 32, 0.05, "monotone", "middle", 768, 1e-4, *aug),
        ("cifar10", 256, 32, 0.05, "monotone", "all", 1024, 2e-4, *aug),
    ]
    for variant in ("tiny", "fast"):
        check_config(cifar10.get_config(variant))
    check_config(imagenet64.get_config("fast"))
    for variant in photos.STEPS:
        check_config(photos.get_config(variant))
    for module, size, blocks in ((imagenet32, "32x32", 32), (imagenet64, "64x64", 64)):
        for variant, kind in (("", old), ("resized", new), ("labels", new)):
            config = module.get_config(variant)
            assert published(config) == (kind + size, 256, blocks, 0.1, *plain)
            assert config.data.class_labels == (variant == "labels")
        with pytest.raises(ValueError, match="unknown variant 'old'"):
            module.get_config("old")
