"""The commands with data that have conditions: who reads them, and what is refused."""

import json

import numpy as np
import pytest
import tiny
import vdmz

from experiments.sample import sample
from vdm_jax.compression import file
from vdm_jax.errors import UserError
from vdm_jax.run import restore, training

pytestmark = pytest.mark.usefixtures("compiled_once")


def digits(folder, name="digits", **changed):
    """Digits, of which the condition are the mean of each half and its square: [n, 2, 2]."""
    images = vdmz.digits(220)
    half = np.stack([images[:, :4].mean((1, 2)), images[:, 4:].mean((1, 2))], axis=1) / 16
    condition = np.stack([half, half**2], axis=2)
    arrays = {"train": images[:200], "test": images[200:]}
    arrays |= {"train_condition": condition[:200], "test_condition": condition[200:]}
    np.savez(folder / f"{name}.npz", **arrays | changed)
    return folder / f"{name}.npz"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on them, of which a fifth was trained without."""
    folder = tmp_path_factory.mktemp("conditions")
    config = tiny.config(name="arrays", path=str(digits(folder)), levels=17, dir=str(folder))
    config.model.update(network="mlp", head="levels", condition_dropout=0.2)
    config.train.batch_size = 40
    config.eval.update(batch_size=20, final_repeats=1)
    config.sample.update(num_steps=1, count=2)
    with tiny.one_device():
        training.train(config, folder / "run")
    return folder / "run"


def of(run, command, *arguments):
    with tiny.one_device():
        return command(["", f"--workdir={run}", *map(str, arguments)])


def drawn(run, *arguments):
    """The samples that the command leaves, and what it says of them."""
    found = of(run, sample, "--num_steps=3", "--sampler=ancestral", *arguments)
    folder = max((run / "sampling").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    return np.load(folder / "samples.npz")["images"], found["settings"]


def test_an_evaluation_takes_the_conditions_of_the_test_images(run, tmp_path):
    def bpd(**changed):
        path = digits(tmp_path, "other", **changed)
        given = "--data=arrays", f"--path={path}", f"--data_dir={tmp_path}", "--repeats=4"
        return of(run, tiny.command, *given)

    own = of(run, tiny.command, "--repeats=4")
    assert own["data"]["given"] == "condition" and own["data"]["condition"] == 4
    condition = np.load(run.parent / "digits.npz")["test_condition"]
    same, other = bpd(), bpd(test_condition=condition[::-1] + 3)
    assert same["rows"] == own["rows"]
    assert same["rows"][0]["bpd"] != other["rows"][0]["bpd"]
    assert same["data"]["fingerprint"] == other["data"]["fingerprint"]
    assert same["data"]["conditions"] != other["data"]["conditions"]


def test_a_sample_depends_on_its_own_condition_and_guidance_is_told(run, tmp_path, capsys):
    rows = np.load(run.parent / "digits.npz")["test_condition"]
    in_turn, said = drawn(run, "--n=3")
    assert (said["n"], said["guidance"], said["network_calls"]) == (3, None, 3)
    np.save(tmp_path / "rows.npy", rows[:3])
    given, said = drawn(run, f"--condition={tmp_path / 'rows.npy'}")
    np.testing.assert_array_equal(given, in_turn)
    assert (said["n"], said["condition"]) == (3, str(tmp_path / "rows.npy"))
    np.save(tmp_path / "rows.npy", np.concatenate([rows[:2], rows[2:3] * 0 + 40.0]))
    other, _ = drawn(run, f"--condition={tmp_path / 'rows.npy'}")
    np.testing.assert_array_equal(other[:2], given[:2])
    assert np.any(other[2] != given[2])
    capsys.readouterr()
    guided, said = drawn(run, "--n=3", "--guidance=30")
    assert (said["guidance"], said["network_calls"]) == (30.0, 6) and np.any(guided != in_turn)
    assert "6 calls of the network each, guided with scale 30" in capsys.readouterr().out
    text = (max((run / "sampling").iterdir()) / "samples.json").read_text()
    assert json.loads(text)["settings"].keys() >= {"guidance"}


def test_other_conditions_than_those_of_the_run_are_refused_in_one_line(run, digits_run, tmp_path):
    narrow = np.ones((220, 3))
    other = digits(tmp_path, "b", train_condition=narrow[:200], test_condition=narrow[200:])
    data = "--data=arrays", f"--path={other}", f"--data_dir={tmp_path}"
    files = {"narrow": narrow[:2], "nan": np.full((2, 4), np.nan), "text": np.array(["a"])}
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "no.npy").write_bytes(b"no")
    for command, folder, arguments, words in (
        (tiny.command, run, data, "images with 4 numbers to condition on, but arrays:b.npz has 3"),
        (tiny.command, run, ["--data=digits"], "numbers to condition on, but digits has 0"),
        (sample, digits_run, data, "images with 0 numbers to condition on, but arrays:b.npz has 3"),
        (sample, digits_run, ["--guidance=1"], "a model that was also trained without its cond"),
        (sample, run, ["--guidance=-1"], "--guidance=-1: wanted a finite number of at least 0"),
        (sample, run, ["--guidance=nan"], "--guidance=nan: wanted a number"),
        (sample, run, ["--class=1"], "--class=1: the model has none"),
        (sample, run, ["--quality", "--guidance=1"], "--guidance goes not with --quality"),
        (sample, digits_run, [f"--condition={tmp_path}/narrow.npy"], "model is conditioned on 0"),
        (sample, run, [f"--condition={tmp_path}/a.npy"], "a.npy: "),
        (sample, run, [f"--condition={tmp_path}/no.npy"], "no.npy: "),
        (sample, run, [f"--condition={tmp_path}/narrow.npy"], "has 3 numbers a row; the model is"),
        (sample, run, [f"--condition={tmp_path}/nan.npy"], "in row 0 that isn't finite"),
        (sample, run, [f"--condition={tmp_path}/text.npy"], "is <U1 (1,); wanted numbers"),
    ):
        with pytest.raises(UserError) as error:
            of(folder, command, *arguments)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_its_images_are_compressed_with_their_conditions(run, digits_run, tmp_path):
    """The file alone holds what a decoder needs of them."""
    out = tmp_path / "a.vdmz"
    with tiny.one_device():
        vdmz.compress(run, "--split=test", "-o", out)
        path = vdmz.decompress(run, out, tmp_path / "a.npy")
        np.save(tmp_path / "in.npy", vdmz.digits(2))
        for command, arguments in (
            (vdmz.plain_compress, [f"--workdir={run}", tmp_path / "in.npy", "-o", "b.vdmz"]),
            (vdmz.plain_decompress, [f"--workdir={digits_run}", out, "-o", tmp_path / "b.npy"]),
        ):
            with pytest.raises(UserError, match=r"is told . numbers of each image, but these come"):
                command(*arguments)
    np.testing.assert_array_equal(np.load(path)[..., 0], vdmz.digits(20))
    header, _ = file.unpack(out.read_bytes())
    rows = np.frombuffer(header.conditioning, "<f4").reshape(20, 5)
    condition = np.load(run.parent / "digits.npz")["test_condition"]
    np.testing.assert_array_equal(rows[:, 1:], np.float32(condition).reshape(20, 4))


def test_classes_and_conditions_of_their_own_exclude_each_other(tmp_path):
    labels = {"train_label": np.arange(200) % 2, "test_label": np.arange(20) % 2}
    config = tiny.config(
        name="arrays", path=str(digits(tmp_path, **labels)), levels=17, dir=str(tmp_path),
        class_labels=True,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"class_labels is set, but arrays:digits.npz has a cond"):
        training.build.load(config)
    assert restore.build.load(tiny.config(name="digits", class_labels=True)).condition == (10, 0)
