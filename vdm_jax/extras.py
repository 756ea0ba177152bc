"""Optional dependencies: what the parts of the package import beside JAX and NumPy."""

import importlib.util

_DATA = (
    "PIL", "filelock", "grain", "importlib_resources", "requests", "rich", "sklearn",
    "tensorflow_datasets",
)  # fmt: skip
# The modules that each extra of pyproject.toml installs for a part of the package.
MODULES = {
    "nn": ("flax", "msgpack"),
    "ode": ("diffrax", "equinox"),
    "data": _DATA,
    "train": (
        *_DATA, "absl", "chex", "etils", "matplotlib", "ml_collections", "optax", "orbax",
        "tensorboardX",
    ),
}  # fmt: skip
MODULES["all"] = (*MODULES["nn"], *MODULES["ode"], *MODULES["train"])


def need(extra: str) -> None:
    """Raises ImportError, in one line, where a module of an extra isn't installed."""
    missing = [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        named = f"{', '.join(missing)}: not installed"
        raise ImportError(f"{named}; to add what is needed: pip install 'vdm_jax[{extra}]'")
