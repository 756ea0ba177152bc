"""The pictures of a run."""

import numpy as np
from PIL import Image

from vdm_jax.train import plots


def test_the_grid_holds_every_image_in_its_place():
    images = np.arange(5)[:, None, None, None] * np.ones((5, 2, 3, 1), int)
    grid = plots.image_grid(images, levels=5)
    assert grid.shape == (2 * 3 - 1, 3 * 4 - 1, 1) and grid.dtype == np.uint8
    for i, value in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(grid[3 * row :][:2, 4 * column :][:, :3], value)
    channels = np.stack([np.zeros((1, 2, 3)), np.ones((1, 2, 3))], axis=-1)
    two = plots.image_grid(channels, levels=2)  # two channels are one below the other in grey
    np.testing.assert_array_equal(two[..., 0], np.repeat([[0], [255]], [2, 2], axis=0) * [1, 1, 1])


def test_grids_are_pictures_enlarged_by_a_whole_factor(tmp_path):
    for channels in (3, 1):
        grid = plots.image_grid(np.ones((1, 4, 5, channels), int), levels=2)
        assert grid.shape == (4, 5, channels) and np.all(grid == 255)
        plots.write_image(tmp_path / "x" / "grid.png", grid)
        with Image.open(tmp_path / "x" / "grid.png") as picture:
            assert picture.size == (515, 412) and np.all(np.asarray(picture) == 255)


def test_the_loss_curve_is_a_picture_with_ink_for_each_split(tmp_path):
    metrics = [{"step": s, "split": "train", "bpd": 5 - s / 50} for s in range(0, 100, 10)]
    metrics.append({"step": 30, "split": "skipped", "key": [1, 2]})
    plots.plot_losses(metrics, tmp_path / "a.png", 90)
    metrics += [{"step": 50, "split": "test", "bpd": 3.9, "bpd_standard_error": 0.2}]
    metrics += [{"step": 90, "split": "test", "bpd": 3.3, "bpd_standard_error": 0.2}]
    plots.plot_losses(metrics, tmp_path / "b.png", 90)
    a, b = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("a.png", "b.png"))
    blue, orange = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's
    assert (a == blue).all(-1).any() and not (a == orange).all(-1).any()
    assert (b == orange).all(-1).any()
