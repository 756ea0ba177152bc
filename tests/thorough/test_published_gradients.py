"""The gradients of the published models that tests/nn/test_published.py leaves out."""

import numpy as np
import pytest
from golden import NAMES, gradient, load


@pytest.mark.parametrize(
    ("name", "num_steps", "remat"),
    [(name, steps, "matmuls") for name in NAMES[:2] for steps in (10, 1000)]
    + [(name, None, remat) for name in NAMES[:2] for remat in ("none", "blocks")]
    + [(NAMES[2], None, "none"), (NAMES[2], 1000, "matmuls")],
)
def test_gradient_norms(name, num_steps, remat):
    golden = load(name)
    _, grads = gradient(name, num_steps, remat)(golden.model.params)
    expected = golden.expected[f"T{num_steps or 0}/grad_norms"]
    atol = 1e-6 * expected.max()
    np.testing.assert_allclose(golden.norms(grads), expected, rtol=1e-3, atol=atol)
