"""The published models' configurations, for `python -m experiments.evaluate --official=PATH`.

Facts of the published code (its configs/*.py): `config.model`, the dataset each model was trained
on, and the bits per dim that its README reports for the released checkpoint, if there is one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm_jax.errors import UserError, reaching

_PLAIN: dict[str, Any] = {
    "vocab_size": 256, "sample_softmax": False, "antithetic_time_sampling": True,
    "with_fourier_features": True, "with_attention": False, "gamma_type": "learnable_scalar",
    "gamma_min": -13.3, "gamma_max": 5.0, "sm_n_timesteps": 0, "sm_n_embd": 128,
    "sm_n_layer": 32, "sm_pdrop": 0.1,
}  # fmt: skip


def _model(data: str, bpd: float | None, **model: Any) -> dict[str, Any]:
    return {"data": data, "bpd": bpd, "model": _PLAIN | model}


PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": _model("cifar10", 2.637),
    "cifar10_aug": _model(
        "cifar10", 2.522, gamma_type="learnable_nnet", sm_n_embd=256, sm_pdrop=0.05
    ),
    "imagenet32": _model("downsampled_imagenet/32x32", None, sm_n_embd=256),
    "imagenet64": _model("downsampled_imagenet/64x64", None, sm_n_embd=256, sm_n_layer=64),
}


def find(path: Path, name: str | None) -> tuple[Mapping[str, Any], str]:
    """Returns {"model": that code's config.model, "data": the dataset's name or None}, a name."""
    if name in PUBLISHED:
        bpd = PUBLISHED[name]["bpd"]
        said = f" (its README: {bpd} bits per dim)" if bpd else ""
        return PUBLISHED[name], f"published {name}{said}"
    known = ", ".join(PUBLISHED)
    if name is not None:
        files = [Path(name)]
        wrong = f"--model={name} is no file and none of {known}"
    else:
        folders = (path, path.parent, path.parent.parent)
        files = [folder / "model_config.json" for folder in folders]
        wrong = (
            f"--model=NAME is missing, one of {known}, or a JSON file with the model's "
            f"configuration (there is no model_config.json beside {path})"
        )
    with reaching(files[0]):
        found = [file for file in files if file.is_file()]
    if not found:
        raise UserError(wrong)
    try:
        model = json.loads(found[0].read_text(encoding="utf-8"))
        return {"model": model}, f"official {found[0].parent.name}"
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{found[0]} is no JSON file: {error}") from error
