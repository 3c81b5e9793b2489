"""The comparison of model and processor, for processors that are not here: two models take the places of both."""

from __future__ import annotations

import dataclasses

import pytest
from model_comparison import Comparison
from model_sequences import Generator, Kind
from modelled_executor import ModelledExecutor

from fpstate.arch import Cpu
from fpstate.engine.model import Behaviour, Processor

NAMES = ("emerald-rapids", "skylake-sp", "zen5", "haswell", "zen3")
WRONG = {
    "FIP keeps 64 bits": {"fip_bits": 64},
    "FDP is extended": {"fdp_bits": 57},
    "a refused restore changes nothing": {"partial_restore": False},
    "outside 64-bit mode XINUSE tells of all registers": {"upper_in_use": True},
    "PKRU is saved with its padding": {"pkru_padding": True},
    "FCS and FDS are kept": {"selectors": True},
}


def compare(name: str, sequences: int, *, seed: int, **wrong: object) -> Comparison:
    """Compare the model of a processor with itself, or with one that behaves otherwise."""
    cpu = Cpu.catalog(name)
    processor = Processor.under_linux(cpu)
    generator = Generator(cpu, processor.xcr0, seed, short=True)
    other = Processor.under_linux(cpu, dataclasses.replace(Behaviour.of(cpu), **wrong))
    other.xfd = 0
    comparison = Comparison(processor, ModelledExecutor(other, generator.area_size), generator)
    comparison.run(sequences, most_differences=3)
    return comparison


@pytest.mark.parametrize("name", NAMES)
def test_equal_models_are_found_equal(name):
    comparison = compare(name, 1000, seed=11)
    assert not comparison.differences, comparison.differences
    assert not comparison.counts["in-use bits chosen otherwise"]


def test_sequences_for_a_processor_with_tiles_contain_everything():
    counts = compare("emerald-rapids", 4000, seed=12).counts
    assert not {kind.name for kind in Kind if not counts[kind.name]}
    assert counts["key 0 closed"] > 100
    assert counts["vector 6"] > 100
    assert counts["vector 13"] > 100


@pytest.mark.parametrize("wrong", WRONG)
def test_another_behaviour_is_caught(wrong):
    comparison = compare("emerald-rapids", 4000, seed=13, **WRONG[wrong])
    chosen = comparison.counts["in-use bits chosen otherwise"]
    assert comparison.differences or chosen > comparison.counts["in-use bits"] // 2000
