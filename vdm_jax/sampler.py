"""The ancestral sampler under its public name; see `vdm_jax.sampling`."""

from vdm_jax.sampling import ancestral, ancestral_step, to_images

__all__ = ["ancestral", "ancestral_step", "to_images"]
