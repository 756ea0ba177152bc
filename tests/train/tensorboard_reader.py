"""Reads back the scalars of TensorBoard event files, without TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto import event_pb2


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """{(tag, step): value} of all event files in a folder."""
    found = {}
    for file in sorted(folder.glob("events*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[(value.tag, event.step)] = value.simple_value
    return found
