"""Every error is for people, and crosses a process whole."""

from __future__ import annotations

import inspect
import pickle

import pytest

from hal import errors

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HalError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_names_device_step_and_hint_and_survives_pickling(kind):
    error = kind("it broke", device="gpu0", during="copy", hint="reset it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(error) == str(again) == "gpu0 during copy: it broke (try: reset it)"
    assert (again.device, again.during, again.hint) == ("gpu0", "copy", "reset it")


def test_the_tree_in_the_module_is_the_tree():
    drawn = errors.__doc__ or ""
    for kind in ALL:
        assert kind.__name__ in drawn


def test_a_vendors_code_is_kept():
    assert pickle.loads(pickle.dumps(errors.HardwareFault("x", code=79))).code == 79
