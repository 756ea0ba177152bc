"""A run's metrics: what is written is read back, also after a restart or a kill."""

import struct

import numpy as np
from tensorboardX.proto import event_pb2

from vdm_jax.train.logging import MetricsLog, read_metrics


def tensorboard(folder):
    """{(tag, step): value} of all event files in a folder, and the number of pictures."""
    scalars, pictures = {}, 0
    for file in sorted(folder.glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                pictures += value.HasField("image")
                if value.HasField("simple_value"):
                    scalars[(value.tag, event.step)] = value.simple_value
    return scalars, pictures


def test_metrics_go_to_a_json_lines_file_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path)
    log.note(5, "skipped", key=[1, 2**32 - 1])
    log.write(10, "train", {"bpd": 3.5, "prior": 0.25})
    log.write(20, "test", {"bpd": np.float32(3.0)})
    log.image(20, "samples", np.zeros((4, 4, 3), np.uint8))
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 5, "split": "skipped", "key": [1, 2**32 - 1]},
        {"step": 10, "split": "train", "bpd": 3.5, "prior": 0.25},
        {"step": 20, "split": "test", "bpd": 3.0},
    ]
    scalars = {("train/bpd", 10): 3.5, ("train/prior", 10): 0.25, ("test/bpd", 20): 3.0}
    assert tensorboard(tmp_path / "tensorboard") == (scalars, 1)


def test_a_step_that_was_skipped_and_comes_again_has_one_line(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (9, 10):  # after 9 and after 10 steps
        log.note(step, "skipped", key=[step])
    MetricsLog(tmp_path, first_step=10).note(10, "skipped", key=[10])
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [9, 10]


def test_a_restart_drops_the_lines_that_it_will_write_again(tmp_path):
    log, file = MetricsLog(tmp_path), tmp_path / "metrics.jsonl"
    for step in (10, 20, 30):
        log.write(step, "train", {"bpd": float(step)})
    log.close()
    with file.open("a") as appended:  # neither is a line of a log, and the last a kill cut short
        appended.write('[]\n{"step": "4", "split": "train"}\n{"step": 5}\n{"step": 1, "split": "')
    log = MetricsLog(tmp_path, first_step=20)
    assert log.damaged == 4 and MetricsLog(tmp_path, first_step=20).damaged == 0
    assert log.has(20, "train") and not log.has(20, "test") and not log.has(30, "train")
    log.write(30, "train", {"bpd": 0.5})
    assert log.has(30, "train")
    log.close()
    lines = read_metrics(file)
    assert [(line["step"], line["bpd"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 0.5)]
    assert len(file.read_text().splitlines()) == 3
    assert read_metrics(tmp_path / "none") == []
    for number in (1, 2):  # from the beginning again: nothing is lost
        before = file.read_bytes()
        log = MetricsLog(tmp_path)
        log.write(10, "train", {"bpd": float(number)})
        log.close()
        assert (tmp_path / log.replaced).read_bytes() == before
        assert log.replaced == f"metrics.{number}.jsonl" and len(read_metrics(file)) == 1
