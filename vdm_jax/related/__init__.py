"""Models that lead to the VDM: hierarchical VAEs, diffusion of bits, mixtures."""
