"""The fields that every experiment has, with the published hyperparameters of CIFAR-10."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

# A type stands for None, in place of which a value of that type may be given.
DEFAULTS: dict[str, Any] = {
    "seed": 1,
    "data": {
        # digits, digits_binary, arrays, folder, cifar10, mnist, downsampled_imagenet/32x32 or
        # /64x64, imagenet_resized/32x32 or /64x64
        "name": "cifar10",
        "path": str,  # arrays: the .npz file; folder: the folder
        "levels": 256,  # arrays: pixel values lie in [0, levels)
        "size": str,  # folder: "64", "48x64"; None: as they are
        "fit": "none",  # folder, how images come to the size: none, crop, resize, tiles
        "channels": 3,  # folder: 3, 1
        "held_out": float,  # folder without train and test; None: 0.1
        # condition on the class, which the data must have; arrays' own conditions are always used
        "class_labels": False,
        "augment": "none",  # none, shift, flip, flip_rot90, flip_rot90_channels
        "validation": 0,  # if > 0, hold out so many training images and evaluate on them
        "dir": str,  # caches; default $VDM_JAX_DATA
        "manual_dir": str,  # folder with downloaded archives
    },
    "model": {
        "network": "unet",  # unet, pyramid (a U-Net of several resolutions), resnet, mlp
        "head": "eps",  # eps, x, v, score, levels; logits for process binomial
        "channels": 128,  # of a block; the width of the mlp
        "num_blocks": 32,  # but of the pyramid
        "multipliers": "1,2,3",  # pyramid: channels of each resolution, as multiples of `channels`
        "blocks": "1,1,2",  # pyramid: blocks of each resolution, on the way down and on the way up
        "contrasts": "0.1,1,10",  # pyramid: of the Wiener filters that it begins with; "": none
        "attention": "middle",  # unet, pyramid: middle (the lowest resolution), all
        # unet, pyramid, what the backward pass computes anew: none, matmuls (all but convolutions
        # and products), blocks (all but inputs), auto (none for a unet on a TPU, else matmuls).
        "remat": "auto",
        # unet, pyramid: float32, bfloat16 (parameters and the loss stay float32).
        "dtype": "float32",
        "fused_attention": False,  # unet, pyramid: cuDNN's, on a GPU with dtype bfloat16
        "fourier_features": True,
        "dropout": 0.1,
        "condition_dropout": 0.0,  # probability of no condition in training, as guidance needs it
        "gamma": "scalar",  # fixed, scalar, monotone, path (of each coefficient), conditional_path
        "transform": "none",  # of the pixels, orthonormal: none, dct, haar-1, haar-2, ...
        "gamma_min": -13.3,  # of the gaussian process, as all of gamma
        "gamma_max": 5.0,
        "gamma_pinned": True,  # monotone: hold the end points, whatever the weights
        "learn_end_points": True,  # monotone and pinned: train them too
        "gamma_objective": "bound",  # bound; variance: monotone and pinned, see appendix I.2
        "num_steps": int,  # T; None is continuous time
        "reverse_var": "posterior",  # of p(z_s|z_t): posterior (the paper's), transition, learned
        "decoder": "discretised",  # p(x|z_0): discretised (bits), density (of continuous x: nats)
        "process": "gaussian",  # gaussian; binomial: of black and white images
        "timesteps": "antithetic",  # antithetic, uniform, adaptive; no hierarchy has any
        "weighting": "bound",  # of the trained loss: bound, simple, min_snr, p2, edm, v, sigmoid
    },
    # A hierarchical VAE in place of the VDM, with the same pixel likelihood; network mlp. With all
    # three restrictions it is the VDM of T = depth - 1, trained on the whole chain at once.
    "hierarchy": {
        "depth": int,  # latents; None: no hierarchy, 1: a VAE
        "latent_size": 16,  # of each, without data_size
        "data_size": False,  # latents have as many elements as an image
        "fixed_encoder": False,  # linear-Gaussian, not learned
        "ends_at_normal": False,  # a schedule of noise that ends at N(0, I)
    },
    "optimizer": {
        "name": "adamw",  # adamw, muon (kernels by Muon, all else by Adam)
        "learning_rate": 2e-4,
        "warmup_steps": 100,
        "decay": "none",  # none, linear, cosine
        "decay_steps": int,  # where it ends; None: at train.steps
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip_norm": float,
        "ema_rate": 0.9999,
    },
    "train": {
        "steps": 10_000_000,
        "batch_size": 128,  # over all devices
        "accumulate": 1,  # micro-batches per step
        "shard_params": 1,  # devices over which parameters, EMA and moments are each split
        "steps_per_call": 1,
        "log_every": 100,
        "checkpoint_every": 10_000,
        "keep_checkpoints": 5,
        # Steps without a finite loss and gradient aren't applied; so many in a row end a run.
        "max_skipped": 10,
    },
    "eval": {
        "every": 10_000,
        "batch_size": 128,
        "repeats": 1,  # draws of time and noise per image while training
        "final_repeats": 10,  # at the end
    },
    "sample": {"every": 50_000, "count": 64, "num_steps": 1000},
}


def get_config(fields: Mapping[str, Any] = DEFAULTS) -> ConfigDict:
    """Returns the defaults; an experiment's own file changes what differs."""
    made = ConfigDict()
    for name, value in fields.items():
        kind = config_dict.placeholder(value) if isinstance(value, type) else value
        made[name] = get_config(value) if isinstance(value, Mapping) else kind
    return made
