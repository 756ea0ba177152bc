"""What `experiments.evaluate` refuses of a published checkpoint. (Its values: thorough.)"""

import shutil

import golden
import pytest
import tiny

from vdm_jax.errors import UserError

NAME = "no_fourier_odd_batch"


@pytest.fixture(scope="module", autouse=True)
def _one_device(compiled_once):
    pass


def test_mistakes_are_named(tmp_path):
    """Another architecture, no configuration, images of other channels."""
    source, images = golden.load(NAME).folder / "checkpoints-0", golden.as_dataset(NAME, tmp_path)

    def refused(*flags, data=images):
        with pytest.raises(UserError) as error:
            tiny.evaluate(tmp_path / "w", *data, *flags)
        assert "\n" not in str(error.value)
        return str(error.value)

    said = refused(f"--official={source}", "--model=cifar10")
    assert "the parameter score_model/" in said and "but the configuration calls for" in said
    said = refused("--official=missing", "--model=cifar10", data=())  # before the images
    assert "no checkpoint file or folder at missing" in said
    assert "--data=NAME is missing" in refused(f"--official={source}", data=())
    said = refused(f"--official={source}", data=("--data=digits",))
    assert "of 3 channel(s), but digits" in said
    shutil.copytree(source, tmp_path / "c" / "c")
    where = f"--official={tmp_path / 'c' / 'c'}"
    assert "--model=NAME is missing, one of cifar10, cifar10_aug" in refused(where)
