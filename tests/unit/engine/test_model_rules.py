"""The model's faults and loads are those that the rules foretell, for processors that are not here too."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT, components_in
from fpstate.engine.model import Behaviour, Processor, restore
from fpstate.engine.model.contents import LOADED
from fpstate.errors import ProcessorFault
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from fpstate.testing import random_image
from fpstate.testing.chance import mangle

IMAGES = 600
NAMES = (
    *("haswell", "zen2", "zen4", "skylake-sp", "knights-landing", "tiger-lake", "sapphire-rapids"),
    *("diamond-rapids-model", "apx-no-amx-model"),
)
MODELLED_ALONE = mask_of(Component.PT, Component.PASID, Component.UINTR)
"""Components about which the model knows refusals for which there is no rule."""
VECTORS = {"#GP": 13, "#PF": 14, "#NM": 7}


@dataclass
class Case:
    """One restore of one image, on a processor in a random state."""

    processor: Processor
    target: Target
    data: bytes
    requested: int
    consumer: Consumer


def cases(name: str, consumer: Consumer, seed: int, *, permitted: int = 0):
    source = random.Random(seed)
    cpu = Cpu.catalog(name)
    target = Target.from_cpu(cpu, permitted=permitted)
    supervisor = target.xss & ~MODELLED_ALONE if consumer is Consumer.XRSTORS else 0
    mask = target.xcr0 | supervisor
    layouts = [] if consumer is Consumer.XRSTORS else [Layout.standard(cpu, target.xcr0)]
    if cpu.has("XSAVEC"):
        layouts += [Layout.compacted(cpu, mask), Layout.compacted(cpu, mask & source.getrandbits(20))]
    room = max(layout.size for layout in layouts) + 64
    before = Processor.under_linux(cpu)
    for component in before.file.values:
        if component > 1:
            before.file.put(component, source.randbytes(len(before.file.values[component])))
    before.xss, before.xfd, before.cpl = target.xss & ~MODELLED_ALONE, target.xfd, 0
    before.xcr0 = target.xcr0
    for number in range(IMAGES):
        layout = source.choice(layouts)
        present = source.getrandbits(20) & layout.mask
        image = random_image(layout, seed * IMAGES + number, present=present, mxcsr_mask=cpu.mxcsr_mask)
        data = bytearray(image.to_bytes().ljust(room, b"\0"))
        mangle(data, source, most=2)
        if source.random() < 0.15:  # memory ends somewhere, and what is behind cannot be read
            del data[64 * source.randrange(room // 64) :]
        requested = source.choice(((1 << 64) - 1, source.getrandbits(20), source.randrange(8)))
        processor = Processor.under_linux(cpu)
        processor.file = before.file.copy()
        processor.xcr0, processor.xss, processor.xfd, processor.cpl = (
            *(before.xcr0, before.xss, before.xfd),
            before.cpl,
        )
        asked = target.with_(requested=requested, xss=before.xss)
        yield Case(processor, asked, bytes(data), requested, consumer)


def problem(case: Case) -> str:
    """Say where model and rules disagree about a case; empty where they agree."""
    verdict = predict(case.data, case.consumer, case.target)
    old = case.processor.snapshot()
    restoring = case.processor.xrstors if case.consumer is Consumer.XRSTORS else case.processor.xrstor
    try:
        restoring(case.data, case.requested)
    except ProcessorFault as fault:
        found = [finding.id for finding in verdict.refusals]
        if fault.rule and fault.rule not in found:
            return f"the model refuses by {fault.rule}, the rules by {found}"
        if VECTORS.get(verdict.answer) != fault.vector:
            return f"{fault.mnemonic}, not {verdict.answer}"
        return _wrong_registers(case, verdict, old)
    if not verdict.accepted:
        return f"taken, although {[finding.id for finding in verdict.refusals]}"
    return _wrong_registers(case, verdict, old)


def _wrong_registers(case, verdict, old) -> str:
    file = case.processor.file
    xcomp_bv = int.from_bytes(case.data[520:528], "little") & (
        COMPACTED_BIT | case.target.xcr0 | case.target.xss
    )
    layout = case.target.compacted(xcomp_bv) if xcomp_bv & COMPACTED_BIT else case.target.standard
    for component in components_in(verdict.loaded | verdict.initialised | verdict.kept):
        value = file.values[component]
        if verdict.loaded >> component & 1:
            place = layout.place(component)
            expected = case.data[place.offset : place.end]
            convert = LOADED.get(component)
            expected = convert(expected) if convert else expected
        elif verdict.initialised >> component & 1:
            expected = file.initial[component]
        else:
            expected = old.values[component]
        if component == Component.X87:
            value, expected = value[:5] + value[32:], expected[:5] + expected[32:]
        if value != expected:
            return f"component {component} is wrong"
    mxcsr = old.mxcsr if verdict.mxcsr is None else verdict.mxcsr
    return "" if file.mxcsr == mxcsr else f"MXCSR is {file.mxcsr:#x}, not {mxcsr:#x}"


@pytest.mark.parametrize("name", NAMES)
def test_xrstor_does_what_the_rules_foretell(name):
    problems = [found for case in cases(name, Consumer.XRSTOR, 1) if (found := problem(case))]
    assert not problems


@pytest.mark.parametrize("name", [name for name in NAMES if Cpu.catalog(name).has("XSAVES")])
def test_xrstors_does_what_the_rules_foretell(name):
    problems = [found for case in cases(name, Consumer.XRSTORS, 2) if (found := problem(case))]
    assert not problems


@pytest.mark.parametrize("name", NAMES)
def test_the_refusals_are_of_every_kind(name):
    found = {
        predict(case.data, case.consumer, case.target).answer for case in cases(name, Consumer.XRSTOR, 1)
    }
    assert found >= {"", "#GP", "#PF"}


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_rules_and_model_take_a_processor_for_the_same(name):
    cpu = Cpu.catalog(name)
    behaviour, target = Behaviour.of(cpu), Target.from_cpu(cpu)
    assert behaviour.reads_absent == target.reads_absent
    assert behaviour.header_first == target.header_first
    assert behaviour.partial_restore == target.partial_restore


def test_with_permission_for_tiles_they_are_loaded():
    tiles = mask_of(Component.TILEDATA)
    some = list(cases("sapphire-rapids", Consumer.XRSTOR, 3, permitted=tiles))
    assert not [found for case in some if (found := problem(case))]
    assert any(any(case.processor.file.values[Component.TILEDATA]) for case in some)


@pytest.mark.parametrize("check", ["_check_standard", "_check_compacted", "_checked_mxcsr"])
def test_a_check_that_is_left_out_is_noticed(monkeypatch, check):
    monkeypatch.setattr(restore, check, lambda *arguments: 0)
    assert any(problem(case) for case in cases("zen4", Consumer.XRSTOR, 4))
