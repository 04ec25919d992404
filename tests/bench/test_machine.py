"""ikd.bench.machine, ikd.bench.profiled: what is told of the machine, and processor time."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from ikd.bench.machine import cpu_model, cpu_seconds, load, machine
from ikd.bench.profiled import Samples


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU 2.6 GHz\n\nprocessor\t: 1\n", "Some CPU 2.6 GHz"),
        ("processor\t: 0\nHardware\t: Some Board\n", "Some Board"),
    ],
)
def test_the_processor_is_named(text: str, model: str) -> None:
    """Figures without the processor they come from cannot be compared."""
    assert cpu_model(text) == model


def test_facts_are_json() -> None:
    """The object is printed as it is."""
    facts = json.loads(json.dumps(machine()))
    assert facts["cores"] >= 1
    assert {"ikd", "python", "cryptography", "openssl"} <= set(facts["versions"])
    assert len(load()) == 3


def test_processor_time_is_that_of_the_process() -> None:
    """Ticks of ten milliseconds, or somebody else's time, would make small differences disappear."""
    before, own = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - own < 0.02:
        pass
    used = cpu_seconds(os.getpid()) - before
    assert used == pytest.approx(time.process_time() - own, abs=0.005)


def test_processor_time_of_nobody_is_an_error() -> None:
    """A responder that died in the middle must not count as one that costs nothing."""
    with pytest.raises(OSError, match="nvalid"):
        cpu_seconds(2**22 - 3)


def test_samples_name_functions_and_lines() -> None:
    """A profile that does not lead to a line helps nobody."""
    samples = Samples()
    samples.take(0, sys._getframe())
    samples.take(0, None)
    text = samples.text()
    assert text.startswith("2 samples")
    assert "tests/bench/test_machine.py" in text
    assert "test_samples_name_functions_and_lines" in text
