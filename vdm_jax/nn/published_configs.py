"""The published models' configurations, for `python -m experiments.evaluate --official=PATH`.

Facts of the published code (its configs/*.py): `config.model`, the data set each model was trained
on, and the bits per dim that its README reports for the released checkpoint, if there is one.
"""

from typing import Any

__all__ = ["PUBLISHED"]

_PLAIN: dict[str, Any] = {
    "vocab_size": 256,
    "sample_softmax": False,
    "antithetic_time_sampling": True,
    "with_fourier_features": True,
    "with_attention": False,
    "gamma_type": "learnable_scalar",
    "gamma_min": -13.3,
    "gamma_max": 5.0,
    "sm_n_timesteps": 0,
    "sm_n_embd": 128,
    "sm_n_layer": 32,
    "sm_pdrop": 0.1,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {"data": "cifar10", "bpd": 2.637, "model": _PLAIN},
    "cifar10_aug": {
        "data": "cifar10",
        "bpd": 2.522,
        "model": _PLAIN | {"gamma_type": "learnable_nnet", "sm_n_embd": 256, "sm_pdrop": 0.05},
    },
    "imagenet32": {
        "data": "downsampled_imagenet/32x32",
        "bpd": None,
        "model": _PLAIN | {"sm_n_embd": 256},
    },
    "imagenet64": {
        "data": "downsampled_imagenet/64x64",
        "bpd": None,
        "model": _PLAIN | {"sm_n_embd": 256, "sm_n_layer": 64},
    },
}
