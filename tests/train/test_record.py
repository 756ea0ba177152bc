"""The record beside a state: its form, which old checkpoints have, and settings in it."""

import numpy as np
import pytest

from vdm_jax.train import record
from vdm_jax.train.record import differences, filled


def test_the_form_that_checkpoints_on_disks_have():
    state = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "step": np.int32(5)}
    made = record.make({"seed": 1}, state)
    assert made == {
        "settings": {"seed": 1},
        "leaves": {"a/w": "float32[2,3] 349bad64ec4d660e", "step": "int32[] 5c45d53e287ef6fa"},
        "sha256": "173509663a37be2d7d704de350efc05c0a470a2bdf2f7af541f3b1831c60fbce",
    }
    assert record.check_intact(made) == made
    record.check_same(made, state, state)
    for other in ({**state, "step": np.int32(4)}, {**state, "a": {"w": state["a"]["w"].T}}):
        with pytest.raises((record.DamagedError, AssertionError), match=r"step has|'a/w'"):
            record.check_same(made, state, other)


def test_differences_names_leaves_on_either_side():
    found = dict(differences({"a": {"b": 1, "c": 2}, "x": 5}, {"a": {"b": 1, "d": 3}, "x": {}}))
    assert found == {"a.c": "a.c: 2 -> unset", "a.d": "a.d: unset -> 3", "x": "x: 5 -> {}"}


def test_what_is_lacking_is_filled_from_the_defaults_at_any_depth():
    then = filled({"a": {"b": 1, "c": {"d": 2}}, "e": 3}, {"a": {"b": 7}, "f": 8})
    assert then == {"a": {"b": 7, "c": {"d": 2}}, "e": 3, "f": 8}
