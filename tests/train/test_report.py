import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboard_reader import scalars

from vdm_jax.train import report
from vdm_jax.train.progress import ProgressDisplay


def test_what_was_noted_of_steps_that_were_skipped_outlives_a_restart(tmp_path):
    log = report.MetricsLog(tmp_path)
    log.note(5, "skipped", key=[1, 2**32 - 1])
    log.write(10, "train", {"bpd": 3.5})
    log.close()
    report.MetricsLog(tmp_path, 20).close()
    lines = report.read_metrics(tmp_path / "metrics.jsonl")
    assert lines[0] == {"step": 5, "split": "skipped", "key": [1, 2**32 - 1]} and len(lines) == 2
    report.plot_losses(lines, tmp_path / "loss.png")


def test_metrics_go_to_a_json_lines_file_and_to_tensorboard(tmp_path):
    log = report.MetricsLog(tmp_path)
    log.write(10, "train", {"bpd": 3.5, "prior": 0.25})
    log.write(20, "test", {"bpd": np.float32(3.0)})
    log.close()
    assert report.read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 10, "split": "train", "bpd": 3.5, "prior": 0.25},
        {"step": 20, "split": "test", "bpd": 3.0},
    ]
    assert scalars(tmp_path / "tensorboard") == {
        ("train/bpd", 10): 3.5, ("train/prior", 10): 0.25, ("test/bpd", 20): 3.0,
    }  # fmt: skip


def test_a_restart_drops_the_lines_that_it_will_write_again(tmp_path):
    log = report.MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, "train", {"bpd": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')  # cut short by a kill
    log = report.MetricsLog(tmp_path, first_step=20)
    log.write(30, "train", {"bpd": 0.5})
    log.close()
    lines = report.read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["bpd"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 0.5)]
    assert all(json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_the_grid_holds_every_image_in_its_place():
    images = np.arange(5)[:, None, None, None] * np.ones((5, 2, 3, 1), int)
    grid = report.image_grid(images, levels=5)
    assert grid.shape == (2 * 3 - 1, 3 * 4 - 1, 1) and grid.dtype == np.uint8
    scaled = [0, 64, 128, 191, 255]
    for i, value in enumerate(scaled):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(grid[3 * row :][:2, 4 * column :][:, :3], value)


@pytest.mark.parametrize(("channels", "shape"), [(3, (4, 5, 3)), (2, (8, 5, 1)), (1, (4, 5, 1))])
def test_grids_of_any_channel_count_are_pictures(channels, shape, tmp_path):
    grid = report.image_grid(np.ones((1, 4, 5, channels), int), levels=2)
    assert grid.shape == shape and np.all(grid == 255)
    report.write_image(tmp_path / "x" / "grid.png", grid, min_size=10)
    with Image.open(tmp_path / "x" / "grid.png") as picture:
        factor = max(1, -(-10 // max(shape[:2])))
        assert picture.size == (shape[1] * factor, shape[0] * factor)
        assert np.all(np.asarray(picture) == 255)


def test_the_loss_curve_is_a_picture_with_ink_for_each_split(tmp_path):
    metrics = [{"step": s, "split": "train", "bpd": 5 - s / 50} for s in range(0, 100, 10)]
    report.plot_losses(metrics, tmp_path / "a.png")
    metrics += [{"step": 90, "split": "test", "bpd": 3.3, "bpd_standard_error": 0.2}]
    report.plot_losses(metrics, tmp_path / "b.png")
    a, b = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("a.png", "b.png"))
    blue, orange = (31, 119, 180), (255, 127, 14)
    assert (a == blue).all(-1).any() and not (a == orange).all(-1).any()
    assert (b == orange).all(-1).any()


def test_without_a_terminal_progress_is_plain_lines_with_rate_time_left_and_terms():
    out = io.StringIO()
    with ProgressDisplay(100, 0, Console(file=out, width=200)) as display:
        rate = display.metrics(
            50, {"bpd": 2.5, "reconstruction": 0.25, "prior": 0.5, "diffusion": 1.75}
        )
        display.say("step 50: test bits per dim 2.0 ± 0.1")
    text = out.getvalue()
    assert "step 50/100" in text and "steps/s" in text and "left" in text
    assert "bpd 2.500 = recon 0.250 + prior 0.500 + diff 1.750" in text
    assert text.count("\n") == 2 and rate > 0


def test_on_a_terminal_there_is_a_bar():
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True)
    with ProgressDisplay(100, 0, console) as display:
        display.metrics(50, {"bpd": 2.5, "reconstruction": 0.25, "prior": 0.5, "diffusion": 1.75})
    assert "50/100" in out.getvalue() and "bpd 2.500" in out.getvalue()
