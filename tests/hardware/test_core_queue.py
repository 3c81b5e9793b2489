"""vCPUs and queues of the bare core: how guests leave, and what misuse is refused."""

import ctypes
import random
import signal
import threading
import time
from collections.abc import Callable
from types import ModuleType

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.errors import UnsupportedHere, VsoError

PAGE = 4096
QUANTUM, BUDGET = 100_000, 100_000_000_000
RSP, RDI = 4, 7
LOOP = b"\xeb\xfe"
EXIT = b"\x65\xff\x14\x25\0\0\0\0"  # call *%gs:0
FINISH = b"\xb8\0\0\0\0" + EXIT
YIELD = b"\xb8\1\0\0\0" + EXIT
UNTIL_TOLD = bytes.fromhex("803f0074fb") + FINISH  # 1: cmp byte ptr [rdi], 0; je 1b
YIELD_FOR_EVER = YIELD + b"\xeb" + bytes([256 - len(YIELD) - 2])

MakeGuest = Callable[[bytes], object]


@pytest.fixture
def guest(native: ModuleType) -> MakeGuest:
    """Make a core vCPU, without memory for its state, that runs these bytes of machine code."""
    memories = []

    def make(code: bytes):
        memory = native.Memory(2 * PAGE)
        memory.write(PAGE, code)
        memory.protect(PAGE, PAGE, True, True)
        memories.append(memory)
        vcpu = native.Vcpu()
        vcpu.code_start, vcpu.code_end = memory.address, memory.address + memory.size
        vcpu.rip = memory.address + PAGE
        vcpu.set_register(RSP, vcpu.rip - 8)
        return vcpu

    return make


def test_every_general_register_and_flag_survives_a_yield_and_preemption(native, guest):
    source = random.Random(16)
    vcpu = guest(YIELD_FOR_EVER)
    values = [source.getrandbits(64) for _ in range(16)]
    values[RSP] = vcpu.registers[RSP]
    for index, value in enumerate(values):
        vcpu.set_register(index, value)
    flags = 0x240CD5 | 0x202
    vcpu.rflags = flags
    queue = native.Queue()
    queue.add(vcpu)
    while vcpu.slices <= 1000 or not vcpu.preemptions:
        assert queue.run(50_000, 20_000_000) is None
    values[0] = 1
    found = vcpu.registers
    assert {n: found[n] for n in range(1, 16) if n != RSP} == {n: values[n] for n in range(1, 16) if n != RSP}
    assert vcpu.rflags & 0x240CD5 == flags & 0x240CD5


def test_the_trap_flag_is_not_carried_into_a_guest(native, guest):
    vcpu = guest(FINISH)
    vcpu.rflags = 0x100 | 0x202
    queue = native.Queue()
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET) is vcpu
    assert vcpu.exit_kind == native.EXIT_CALL


def test_a_guest_leaves_by_call_by_port_by_fault_and_by_tick(native, guest):
    queue = native.Queue()
    for code, kind in (
        (FINISH, native.EXIT_CALL),
        (b"\xb8\0\0\0\0\xe7\xf5", native.EXIT_PORT),
        (b"\x0f\x0b", native.EXIT_FAULT),
    ):
        vcpu = guest(code)
        queue.add(vcpu)
        assert queue.run(QUANTUM, BUDGET) is vcpu
        assert vcpu.exit_kind == kind
        assert len(queue) == 0
    vcpu = guest(LOOP)
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET, 3) is None
    assert vcpu.exit_kind == native.EXIT_PREEMPTED
    assert vcpu.preemptions == vcpu.slices


@pytest.mark.parametrize("stack", [0, 1 << 63])
def test_a_jump_to_the_exit_without_a_stack_is_a_fault_of_the_guest(native, guest, stack):
    """The exit pops what a call would have pushed: that faults in the host's code, and on the guest's account."""
    vcpu = guest(b"\x65\xff\x24\x25\0\0\0\0")  # jmp *%gs:0
    vcpu.set_register(RSP, stack)
    vcpu.set_register(RDI, 5)
    queue = native.Queue()
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET) is vcpu
    assert vcpu.exit_kind == native.EXIT_FAULT
    assert vcpu.fault[0] in (signal.SIGSEGV, signal.SIGBUS)
    assert (vcpu.registers[RSP], vcpu.registers[RDI]) == (stack, 5)
    other = guest(FINISH)
    queue.add(other)
    assert queue.run(QUANTUM, BUDGET) is other
    assert other.exit_kind == native.EXIT_CALL


def test_counters_add_up(native, guest):
    queue = native.Queue()
    vcpus = [guest(code) for code in (LOOP, YIELD_FOR_EVER, LOOP, YIELD_FOR_EVER, FINISH, b"\xf4")]
    for vcpu in vcpus:
        queue.add(vcpu)
    others = 0
    while others < 2 or min(queue.preemptions, queue.yields) <= 10:
        others += queue.run(QUANTUM, 5_000_000) is not None
    assert others == 2
    assert queue.switches == queue.preemptions + queue.yields + others
    assert queue.switches == queue.saves == sum(vcpu.slices for vcpu in vcpus)
    assert queue.preemptions == sum(vcpu.preemptions for vcpu in vcpus)


def test_a_slice_limit_and_a_budget_are_kept(native, guest):
    queue = native.Queue()
    vcpu = guest(YIELD_FOR_EVER)
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET, 7) is None
    assert vcpu.slices == 7
    start, used = time.perf_counter(), time.thread_time()
    assert queue.run(QUANTUM, 30_000_000) is None
    assert time.perf_counter() - start >= 0.03
    assert time.thread_time() - used < 1


def test_the_longest_budget_is_one(native, guest):
    queue = native.Queue()
    vcpu = guest(LOOP)
    queue.add(vcpu)
    assert queue.run(QUANTUM, (1 << 64) - 1, 7) is None
    assert vcpu.slices == 7


def test_an_expired_guest_leaves(native, guest):
    vcpu = guest(LOOP)
    vcpu.cycle_limit = native.tsc_hz() // 1000
    queue = native.Queue()
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET) is vcpu
    assert vcpu.exit_kind == native.EXIT_EXPIRED
    assert vcpu.cycles > vcpu.cycle_limit


def test_an_empty_queue_returns_at_once(native):
    assert native.Queue().run(QUANTUM, BUDGET) is None


def test_samples_are_taken_only_where_asked_for(native, guest):
    for timing in (True, False):
        queue = native.Queue(timing=timing)
        queue.add(guest(YIELD_FOR_EVER))
        queue.run(QUANTUM, BUDGET, 100)
        assert bool(queue.samples()) == timing


def test_adding_twice_is_refused(native, guest):
    vcpu, queue, other = guest(LOOP), native.Queue(), native.Queue()
    queue.add(vcpu)
    for each in (queue, other):
        with pytest.raises(VsoError, match="already"):
            each.add(vcpu)
    assert (len(queue), len(other)) == (1, 0)


def test_removing_what_is_not_there_is_refused(native, guest):
    vcpu, queue, other = guest(LOOP), native.Queue(), native.Queue()
    queue.add(vcpu)
    for stranger in (guest(LOOP), None, 5, queue):
        with pytest.raises(VsoError, match="not in this queue"):
            queue.remove(stranger)
    with pytest.raises(VsoError, match="not in this queue"):
        other.remove(vcpu)
    queue.remove(vcpu)
    assert len(queue) == 0
    other.add(vcpu)


def test_members_can_be_removed_from_anywhere_in_the_ring(native, guest):
    source = random.Random(5)
    queue, members = native.Queue(), []
    for _ in range(300):
        if members and source.random() < 0.5:
            queue.remove(members.pop(source.randrange(len(members))))
        else:
            members.append(guest(YIELD_FOR_EVER))
            queue.add(members[-1])
        before = [member.slices for member in members]
        queue.run(QUANTUM, BUDGET, len(members))
        assert [member.slices for member in members] == [count + 1 for count in before]
    assert len(queue) == len(members)


def test_a_vcpu_without_a_program_is_refused(native):
    with pytest.raises(VsoError, match="no program"):
        native.Queue().add(native.Vcpu())


def test_what_is_no_vcpu_is_refused(native):
    for thing in (None, 3, native.Queue()):
        with pytest.raises(TypeError, match="Vcpu"):
            native.Queue().add(thing)


@pytest.mark.parametrize("quantum", [0, 1, 19_999])
def test_a_quantum_in_which_nothing_would_run_is_refused(native, guest, quantum):
    queue = native.Queue()
    queue.add(guest(LOOP))
    with pytest.raises(ValueError, match=f"quantum of {quantum} ns"):
        queue.run(quantum, BUDGET)


def test_a_queue_keeps_its_members_alive_and_lets_them_go(native, guest):
    queue = native.Queue()
    vcpu = guest(LOOP)
    queue.add(vcpu)
    del queue
    native.Queue().add(vcpu)


def test_nothing_is_changed_while_it_runs(native, guest):
    told, vcpu, queue, spare = ctypes.c_ubyte(0), guest(UNTIL_TOLD), native.Queue(), guest(LOOP)
    vcpu.set_register(RDI, ctypes.addressof(told))
    queue.add(vcpu)
    thread = threading.Thread(target=queue.run, args=(QUANTUM, BUDGET))
    thread.start()
    with pytest.raises(VsoError, match="running"):  # noqa: PT012 - as soon as it does
        while thread.is_alive():
            vcpu.pkru = vcpu.pkru
            time.sleep(0.001)
    misuse = (
        lambda: setattr(vcpu, "rip", 0),
        lambda: setattr(vcpu, "pkru", 0),
        lambda: vcpu.set_register(0, 1),
        lambda: vcpu.attach(None, 0),
        lambda: queue.add(spare),
        lambda: queue.remove(vcpu),
        lambda: queue.run(QUANTUM, BUDGET),
    )
    for deed in misuse:
        with pytest.raises(VsoError, match="running"):
            deed()
    assert thread.is_alive()
    told.value = 1
    thread.join()
    assert vcpu.exit_kind == native.EXIT_CALL
    vcpu.set_register(0, 1)
    queue.add(spare)
    queue.remove(spare)


@pytest.mark.parametrize("index", [16, 1000])
def test_there_are_sixteen_general_registers(native, index):
    with pytest.raises(ValueError, match="0 to 15"):
        native.Vcpu().set_register(index, 0)


def test_a_state_buffer_is_aligned_writable_and_large_enough(native):
    vcpu, slab = native.Vcpu(), native.Slab(640, 1)
    for buffer in (memoryview(slab)[1:], memoryview(slab)[:512], memoryview(slab)[128:]):
        with pytest.raises(ValueError, match="576"):
            vcpu.attach(buffer, 3)
    with pytest.raises((BufferError, TypeError)):
        vcpu.attach(bytes(1024), 3)
    with pytest.raises(TypeError):
        vcpu.attach(5, 3)
    assert vcpu.save_mask == 0
    vcpu.attach(slab, 3)
    assert vcpu.save_mask == 3


def test_a_state_buffer_holds_what_it_is_to_have_room_for(native):
    """One byte too few, and a component that is not there: the image would end outside, or be one XRSTOR refuses."""
    mask = native.features()["managed_mask"]
    if not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    size = Layout.compacted(Cpu.host(), mask).size
    slab = native.Slab(-(-size // 64) * 64, 1)
    vcpu, whole = native.Vcpu(), memoryview(slab)[:size]
    for use in (vcpu.attach, native.save_state):
        with pytest.raises(ValueError, match=f"at least {size} bytes"):
            use(whole[:-1], mask)
        with pytest.raises(ValueError, match="XCR0"):
            use(whole, mask | 1 << 62)
    assert vcpu.save_mask == 0
    assert not any(whole)
    vcpu.attach(whole, mask)
    assert vcpu.save_mask == mask


def test_values_that_do_not_fit_are_refused(native):
    vcpu = native.Vcpu()
    for name, value in (("pkru", 1 << 32), ("shrink_after", 1 << 32), ("rip", 1 << 64), ("rip", -1)):
        with pytest.raises(OverflowError):
            setattr(vcpu, name, value)
    for name in ("slices", "fault", "save_mask", "spilled"):
        with pytest.raises(AttributeError):
            setattr(vcpu, name, 1)
    vcpu.rip = 7
    for name in ("rip", "pkru"):
        with pytest.raises(AttributeError, match="deleted"):
            delattr(vcpu, name)
    assert vcpu.rip == 7


def test_a_vcpu_in_use_without_a_buffer_is_spilled_and_waits(native, guest):
    """pcmpeqd xmm0, xmm0, then round and round."""
    vcpu, queue = guest(b"\x66\x0f\x76\xc0" + LOOP), native.Queue()
    queue.add(vcpu)
    assert queue.run(QUANTUM, BUDGET) is vcpu
    assert (vcpu.spilled, vcpu.in_use & 2) == (1, 2)
    with pytest.raises(VsoError, match="larger buffer"):
        queue.add(vcpu)
    image = bytearray(576)
    native.unspill(image, [(0, 0, 576)])
    assert bytes(image[160:176]) == b"\xff" * 16
    native.unspill(image, [(0, 0, 576)])
    assert not any(image), "the spill area is wiped once it was read"
    vcpu.attach(None, 0)
    queue.add(vcpu)


@pytest.mark.parametrize(
    "move",
    [(-1, 0, 8), (0, -1, 8), (0, 0, -1), (1 << 30, 0, 8), (0, 60, 8), (0, 0, 1 << 62), (1 << 62, 0, 8)],
)
def test_moves_outside_the_spill_area_or_the_destination_are_refused(native, move):
    with pytest.raises(ValueError, match="leaves"):
        native.unspill(bytearray(64), [move])


@pytest.mark.parametrize("moves", [5, [5], [(1, 2)], [("a", 0, 0)], [(0, 0, 8), None]])
def test_moves_that_are_no_moves_are_refused(native, moves):
    with pytest.raises(TypeError):
        native.unspill(bytearray(64), moves)


def test_a_refused_spill_is_wiped_all_the_same(native, guest):
    vcpu, queue = guest(b"\x66\x0f\x76\xc0" + LOOP), native.Queue()
    queue.add(vcpu)
    queue.run(QUANTUM, BUDGET)
    with pytest.raises(ValueError, match="leaves"):
        native.unspill(bytearray(0), [(0, 0, 64)])
    left = bytearray(576)
    native.unspill(left, [(0, 0, 576)])
    assert not any(left)


def test_a_compact_queue_needs_xsavec_and_xgetbv1(native):
    found = native.features()
    if found["xsavec"] and found["xgetbv1"]:
        assert len(native.Queue(compact=True)) == 0
    else:
        with pytest.raises(UnsupportedHere, match="XSAVEC"):
            native.Queue(compact=True)
    assert len(native.Queue(compact=False)) == 0


def test_an_illegal_state_is_refused_at_entry_and_nobody_else_suffers(native, guest):
    slab = native.Slab(native.features()["area_size"] // 64 * 64 + 64, 1)
    bad, good, queue = guest(FINISH), guest(FINISH), native.Queue()
    memoryview(slab)[512:520] = (1 << 63).to_bytes(8, "little")
    bad.attach(slab, 3)
    queue.add(bad)
    queue.add(good)
    assert queue.run(QUANTUM, BUDGET) is bad
    assert (bad.exit_kind, bad.registers[0]) == (native.EXIT_REFUSED, 0)
    assert queue.run(QUANTUM, BUDGET) is good
    assert good.exit_kind == native.EXIT_CALL
    assert queue.switches == queue.saves + 1
