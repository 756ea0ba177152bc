"""The files of an evaluation: strict JSON, a table with each row, its notes, a plot."""

import json
import math

import numpy as np
import tiny
from PIL import Image

from vdm_jax.evaluation import report

ROW = {
    "quantity": "bound, T = 5", "kind": "variational bound", "unit": "bits per dim", "bpd": 3.25,
    "standard_error": 0.125, "monte_carlo_error": math.nan, "between_images_error": 0.0,
    "num_images": 7, "draws": 2, "network_calls": 14,
    "terms": {
        name: {"mean": k / 8} for k, name in enumerate(("reconstruction", "prior", "diffusion"))
    },
}  # fmt: skip
ODE = ROW | {
    "quantity": "ODE", "kind": "density", "monte_carlo_error": 0.5, "between_images_error": 0.25,
    "terms": {}, "function_evaluations": 31.4, "trace": "hutchinson", "probes": "2 rademacher",
    "tolerance": 1e-3,
}  # fmt: skip
FOUND = {
    "model": {"name": "RUN", "step": 60},
    "data": {"name": "digits", "part": "test", "given": "class"},
    "groups": None,
    "rows": [ROW, ODE],
    "pilot_calls": 99,
    "failed": None,
    "note": "the terms are those of a VAE",
    "profile": {"unit": "bits per dim", "t": [0.25, 0.75], "gamma": [-4.0, 2.0], "mean": [1.0, 2.0],
                "rms": [2.0, 3.0]},
    "command": "python -m experiments.evaluate --workdir=RUN",
}  # fmt: skip
TEXT = """RUN at step 60, on the test images of digits, given the class of each image.

    python -m experiments.evaluate --workdir=RUN

| quantity | kind | bits per dim | ± in all | ± of the draws | ± between images | reconstruction | \
prior | diffusion | images | draws each | network calls |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| bound, T = 5 | variational bound | 3.2500 | 0.1250 | - | 0.0000 | 0.0000 | 0.1250 | 0.2500 | 7 | 2 \
| 14 |
| ODE | density | 3.2500 | 0.1250 | 0.5000 | 0.2500 | - | - | - | 7 | 2 | 14 |

ODE: tolerance 0.001, 31 evaluations of the network, hutchinson trace, 2 rademacher probe(s); of \
images it gives a bound.

Before these, 99 network calls told how to draw; no estimate has them.

Of this model the terms are those of a VAE.

Between images 0: too small to be seen beside the draws; --repeats helps.

Fewer than 20 images: the errors between them are themselves rough.
"""


def test_the_files_hold_every_number_and_a_folder_is_never_used_twice(tmp_path):
    folders = [report.new_folder(tmp_path / "evaluation", 60) for _ in range(3)]
    assert [folder.name for folder in folders] == ["step-60", "step-60-2", "step-60-3"]
    report.write(folders[0], FOUND)
    assert (folders[0] / "result.md").read_text() == TEXT
    saved = tiny.strict_json(folders[0] / "result.json")
    assert saved["rows"][0]["monte_carlo_error"] is None
    assert saved["rows"][1] == json.loads(json.dumps(ODE))
    with Image.open(folders[0] / "diffusion_loss.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    of_sources = FOUND | {"groups": 12, "pilot_calls": 0, "note": "", "profile": {}, "rows": [ODE]}
    report.write(folders[1], of_sources)
    text = (folders[1] / "result.md").read_text()
    assert "± between sources" in text and "Fewer than 20 sources" in text and "Before" not in text
    assert text.endswith(
        "\nImages of one source are alike: errors are those of sources, 12 or more.\n"
    )
    assert not (folders[1] / "diffusion_loss.png").exists()
    row = ODE | {"standard_error": math.nan, "between_images_error": math.nan}
    report.write(folders[2], of_sources | {"groups": 1, "rows": [row]})
    text = (folders[2] / "result.md").read_text()
    assert "| 3.2500 | - | 0.5000 | - |" in text and "rough" not in text
    assert "\nA row of one source has no error between sources, nor one in all.\n" in text


def test_a_row_in_words_and_the_rows_of_samples():
    assert report.line(ROW) == "bound, T = 5: 3.2500 ± 0.1250 bits per dim"
    of_one = ODE | {"standard_error": math.nan}
    assert report.line(of_one) == "ODE: 3.2500 (± 0.5000 of the draws) bits per dim"
    distances = {"images": "samples", "count": 9, "mmd": 0.0123456, "sliced_wasserstein": 0.5}
    by_chance = {"mmd_by_chance": (0.001, 0.0005), "sliced_wasserstein_by_chance": (0.25, 0.125)}
    assert report.of_distances([distances | by_chance]).splitlines() == [
        "| to as many test images | images | MMD² x1000 | by chance | sliced W2² x1000 | by chance |",
        "| --- | --- | --- | --- | --- | --- |",
        "| samples | 9 | 12.346 | 1.000 ± 0.500 | 500.000 | 250.000 ± 125.000 |",
    ]
    row = {"sampler": "ddim", "spacing": "karras", "calls": 0, "seconds": 1.26, "mmd": 0.002,
           "mmd_error": 0.001, "sliced_wasserstein": 0.5, "sliced_wasserstein_error": 0.25}  # fmt: skip
    assert report.of_quality(row) == [
        "ddim", "karras", "-", "2.000 ± 1.000", "500.000 ± 250.000", "1.3",
    ]  # fmt: skip
