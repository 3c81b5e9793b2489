"""The child that performs single instructions: what each does is told, also what this processor does not have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from recording.answers import Outcome, comes_in_use_by_itself
from recording.child import Child, ChildEndedError, Record
from recording.host import NONE, UNUSED, USED, Host
from recording.images import SigreturnCases, XrstorCases
from recording.inputs import ALL, Inputs, difference, make_pool
from recording.measure import has_i386_calls, pointer_widths, runs_32_bit_code
from recording.memory import BASE
from recording.perform import Runner, majority, record_sequences
from recording.registers import register_list
from recording.sequences import AREAS, Sequences

from fpstate.arch import Cpu
from fpstate.arch.component import USER_DYNAMIC
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from recorded import build

TILE_OPERATIONS = [["ldtilecfg", bytes(64).hex()], ["sttilecfg", 0, 0], ["tilerelease"], ["tilezero", 3],
                   ["tileloadd", 7, 0], ["tilestored", 0, 1, 0]]  # fmt: skip
UNDEFINED = (4, 2, 6)
NOTHING = Record(0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def host(core) -> Host:
    return Host.here()


@pytest.fixture
def child(recording_child: Path, host: Host) -> Iterator[Child]:
    with Child(recording_child, host.cpu) as child:
        yield child


@pytest.fixture
def runner(child: Child, host: Host) -> Runner:
    return Runner(child, host, make_pool(1))


def perform(runner: Runner, host: Host, *operations: list) -> Outcome:
    return runner.run([[*operations]], [[bytes(host.size + 256)] * AREAS])[0]


def test_tiles_and_their_configuration_are_undefined_where_there_are_none(runner, host):
    if host.has_tiles:
        pytest.skip("a processor without AMX: this one has it")
    outcome = perform(runner, host, *TILE_OPERATIONS)
    assert [record.fault for record in outcome.records] == [UNDEFINED] * len(TILE_OPERATIONS)


def test_pkru_is_undefined_where_there_is_none(runner, host):
    if host.has_pkru:
        pytest.skip("a processor without PKU, or with CR4.PKE clear: this one has it")
    outcome = perform(runner, host, ["rdpkru"], ["wrpkru", 0])
    assert [record.fault for record in outcome.records] == [UNDEFINED] * 2


def test_pkru_that_closes_key_0_is_told_and_opened_again(runner, host):
    if not host.has_pkru:
        pytest.skip("PKU (CPUID.(07H,0):ECX[4])")
    outcome = perform(runner, host, ["wrpkru", 0xFFFFFFFF], ["rdpkru"])
    assert [record.pkru for record in outcome.records] == [0xFFFFFFFF, 0xFFFFFFFC]
    assert outcome.records[1].value == 0xFFFFFFFC


def test_tiles_need_permission_and_then_run(recording_child, host):
    if not host.has_tiles:
        pytest.skip("AMX: TILEDATA on request (XCR0[18], CPUID.(0DH,1):EAX[4])")
    configured = ["ldtilecfg", (b"\1" + bytes(15) + b"\x40" + bytes(31) + b"\x10" + bytes(15)).hex()]
    expected = {NONE: (4, 1, None), USED: None, UNUSED: None}
    for permission, fault in expected.items():
        with Child(recording_child, host.cpu, permission=permission) as child:
            runner = Runner(child, host, make_pool(1))
            records = perform(runner, host, configured, ["tilezero", 0], ["tilerelease"]).records
            assert [record.fault for record in records] == [None, fault, None]


def test_every_operation_that_sequences_use_can_be_performed(runner, host):
    """A processor that had everything would be asked for nothing that the child does not know."""
    makes = Sequences(EVERYTHING, Inputs(EVERYTHING, make_pool(1), 1), short=True, x87=True)
    places = [runner.child.reserve(makes.area) for _ in range(AREAS)]
    names = set()
    for operation in (operation for _ in range(1500) for operation in makes.one()):
        runner.child.release()
        step = runner.step(operation, places)
        assert step[0] in runner.child.stubs.values()
        names.add(operation[0])
    assert {
        "tilezero",
        "tileloadd",
        "tilestored",
        "ldtilecfg",
        "sttilecfg",
        "wrpkru",
        "rdpkru",
        "fldt",
        "fstp",
    } < names


EVERYTHING = Host(Cpu.catalog("emerald-rapids"), 0x602E7)
"""A machine with AMX, XFD and PKRU: what it is asked can be asked of any other."""


def test_a_processor_that_has_less_is_asked_the_same_and_says_so(recording_child, host):
    """The way of the recorder on a machine with AMX, as far as one without can go it: all of it says #UD."""
    if host.has_tiles:
        pytest.skip("a processor without AMX: this one has it")
    inputs = Inputs(EVERYTHING, make_pool(6), 7)
    header, cases = record_sequences(
        EVERYTHING, inputs, 200, NONE, lambda: Child(recording_child, host.cpu), short=True, x87=True
    )
    assert header["area"] == 11264
    faults: dict[str, set[tuple | None]] = {}
    for case in cases:
        for operation, answer in zip(case["o"], case["r"], strict=True):
            faults.setdefault(operation[0], set()).add((answer or {}).get("f"))
    for name in {operation[0] for operation in TILE_OPERATIONS}:
        assert faults[name] == {UNDEFINED}, name
    if not host.has_pkru:
        assert faults["rdpkru"] == faults["wrpkru"] == {UNDEFINED}


@pytest.mark.parametrize("permission", [NONE, USED])
def test_images_for_a_processor_that_has_more_are_answered(recording_child, host, permission):
    if host.has_tiles:
        pytest.skip("a processor without AMX: this one has it")
    inputs = Inputs(EVERYTHING, make_pool(8), 9)
    for make in (XrstorCases(EVERYTHING, inputs, permission, short=True),
                 SigreturnCases(EVERYTHING, inputs, permission, 64),
                 SigreturnCases(EVERYTHING, inputs, permission, 32)):  # fmt: skip
        cases = list(make.record(100, lambda: Child(recording_child, host.cpu)))
        assert all(len(case["r"]["g"]) == 11 for case in cases)
        assert {len(case["r"].get("f", ())) for case in cases} == {0, 3}


def test_the_pattern_is_loaded_as_it_stands_and_is_initial_nowhere():
    target = Target.from_cpu(EVERYTHING.cpu, permitted=USER_DYNAMIC)
    inputs = Inputs(EVERYTHING, make_pool(8), 9)
    pattern = bytes(build(inputs.pattern(EVERYTHING.xcr0), inputs.pool, EVERYTHING.size))
    verdict = predict(pattern, Consumer.XRSTOR, target)
    assert str(verdict) == "loaded"
    assert verdict.loaded == EVERYTHING.xcr0
    assert register_list(EVERYTHING, pattern, bytes(576), pattern)[2:] == ["K"] * 9


def test_permission_that_is_refused_ends_the_recording(recording_child, host):
    if host.has_tiles:
        pytest.skip("a processor without AMX: this one has it")
    with pytest.raises(ChildEndedError, match="permission for TILEDATA was refused: errno"):
        Child(recording_child, host.cpu, permission=USED)


def test_every_fault_is_told_with_its_signal(child):
    image = bytearray(576)
    image[24:28] = (0x1F80).to_bytes(4, "little")
    good = child.place(image)
    image[528] = 1
    broken = child.place(image)
    pending = bytearray(image)
    pending[0:4] = bytes.fromhex("7e030100")
    records = child.run(
        [
            child.step("xrstor64", broken, ALL),
            child.step("xrstor64", child.end - 64, ALL),
            child.step("xrstor64", good + 1, ALL),
            child.step("fxrstor64", child.place(pending)),
            child.step("fldcw", good),
            child.step("fninit"),
            child.step("xrstors64", good, ALL),
        ]
    )
    general = (11, 128, 13)
    assert [record.fault for record in records][:6] == [general, (11, 2, 14), general, None, (8, 7, 16), None]
    assert child.end <= records[1].address < child.end + 512


def test_an_exception_outside_of_the_steps_ends_the_child(child):
    child.stubs["nowhere"] = BASE
    with pytest.raises(ChildEndedError, match="ended with 3"):
        child.run([child.step("nowhere")])


def test_code_outside_64_bit_mode_and_the_i386_table_are_found(child):
    assert runs_32_bit_code(child) in (True, False)
    assert has_i386_calls(child) in (True, False)


def test_pointers_have_one_of_the_known_widths(child):
    assert set(pointer_widths(child).values()) <= {48, 57, 64}


def test_the_majority_decides_and_its_absence_is_told():
    assert majority([1, 2, 1]) == (1, True)
    assert majority([2, 1, 1]) == (1, True)
    assert majority([1, 2, 3]) == (1, False)


def test_pkru_that_comes_in_use_by_itself_is_told():
    in_use = NOTHING._replace(in_use=1 << 9)
    for operation, permission, itself in (
        (["fninit"], NONE, True),
        (["wrpkru", 0], NONE, False),
        (["xrstor64", 0, ALL, 0], NONE, False),
        (["tilezero", 0], USED, True),
        (["tilezero", 0], UNUSED, False),
    ):
        assert comes_in_use_by_itself([operation], Outcome((in_use,), ()), permission) is itself
    faulted = Outcome((in_use._replace(signal=11, code=128, vector=13),), ())
    assert not comes_in_use_by_itself([["fninit"]], faulted, NONE)


def test_differences_make_one_image_the_other(host):
    inputs = Inputs(host, make_pool(2), 3)
    for _ in range(50):
        before = bytes(build(inputs.template(), inputs.pool, host.size))
        patches = inputs.mutations(before)
        after = build(patches, inputs.pool, host.size, before)
        assert difference(before, after) == patches


def test_letters_say_what_registers_equal(host):
    """Equal to image and pattern, to none of them, and a single bit off."""
    inputs = Inputs(host, make_pool(4), 5)
    pattern = bytes(build(inputs.pattern(host.xcr0), inputs.pool, host.size))
    listed = register_list(host, pattern, bytes(576), pattern)
    assert listed[2:5] == ["K"] * 3
    assert register_list(host, pattern, pattern, pattern)[3] == "LK"
    changed = bytearray(pattern)
    changed[160] ^= 1
    assert isinstance(register_list(host, bytes(changed), pattern, pattern)[4], int)
    changed[42] ^= 1  # in the padding behind ST0
    assert register_list(host, bytes(changed), pattern, pattern)[3] == "LK"
