"""The user's own files: with any bytes changed they are read right, or refused in one line that
names them; a folder trains from the command line.
"""

import contextlib
import io
import json

import numpy as np
from commands import TINY, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vdm_jax.data import FolderOptions, file_states, load, pictures_io
from vdm_jax.errors import UserError

TRAIN = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = {"train_label": np.arange(6), "test_label": np.arange(2), "test_source": np.arange(2)}


def _bytes(save, *args, **kwargs) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


NPZ = _bytes(np.savez_compressed, train=TRAIN, test=TRAIN[:2], **LABELS)
NPY = _bytes(np.save, TRAIN)
PICTURES = [_bytes(Image.new("RGB", (4, 4), (1, 2, 3)).save, kind) for kind in ("PNG", "WEBP")]

quick = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A valid file with bytes changed, cut out, doubled or put in; now and then bytes alone."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        much = draw(st.integers(1, 40))
        match draw(st.sampled_from(["change", "cut", "double", "insert", "end", "ones"])):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[at : at + much]
            case "double":
                content[at:at] = content[at : at + much]
            case "insert":
                content[at:at] = draw(st.binary(max_size=much))
            case "end":
                del content[at:]
            case "ones":  # sizes and counts become huge
                content[at : at + 4] = b"\xff" * len(content[at : at + 4])
    return bytes(content)


@contextlib.contextmanager
def right_or_refused(name: str):
    said = ""
    try:
        yield
    except UserError as error:
        said = str(error)
    assert not said or ("\n" not in said and name in said), said


@quick
@given(content=damaged(NPZ))
def test_an_npz(tmp_path, monkeypatch, content):
    monkeypatch.setattr(file_states, "AT_REST_S", 0.0)
    (tmp_path / "any.npz").write_bytes(content)
    with right_or_refused("any.npz"):
        data = load("arrays", path=tmp_path / "any.npz", data_dir=tmp_path / "cache")
        np.testing.assert_array_equal(data.train[..., 0], TRAIN)


@quick
@given(content=damaged(NPY))
def test_an_npy_to_be_compressed(tmp_path, content):
    (tmp_path / "any.npy").write_bytes(content)
    with right_or_refused("any.npy"):
        came = pictures_io.read(tmp_path / "any.npy")
        assert came.images.dtype == np.uint8 and pictures_io.check_meta(
            came.meta, came.images.shape
        )


@quick
@given(content=st.one_of(*map(damaged, PICTURES)), fit=st.sampled_from(["none", "crop"]))
def test_a_picture(tmp_path, monkeypatch, content, fit):
    monkeypatch.setattr(file_states, "AT_REST_S", 0.0)
    for part in ("train", "test"):
        (tmp_path / "in" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / part / "any.png").write_bytes(content)
    with right_or_refused("any.png"):
        options = FolderOptions(size=(4, 4), fit=fit)
        load("folder", path=tmp_path / "in", data_dir=tmp_path / "cache", folder=options)


def test_a_folder_trains_from_the_command_line(tmp_path):
    for n in range(40):
        path = tmp_path / "in" / ("train" if n < 30 else "test") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 12 + n % 3), (n, 2 * n, 99)).save(path)
    done = run(
        "folder", f"--workdir={tmp_path / 'w'}", f"--config.data.path={tmp_path / 'in'}",
        f"--config.data.dir={tmp_path / 'cache'}", "--config.data.size=4x6",
        "--config.data.fit=crop", "--config.data.channels=1", *TINY, "--config.model.network=mlp",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (result["num_images"], result["data"]["train"]) == (10, 30)
    assert result["data"]["event_shape"] == [4, 6, 1]
    assert 0 < result["bpd"] < 60
