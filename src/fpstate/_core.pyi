"""The native core: it moves bits and knows no policy. This page is its contract.

All sizes and offsets are bytes, masks are component bitmaps as in XCR0. Errors of fpstate (``UnsupportedHere``,
``RestoreFault``, ``VsoError``, ``PoolExhausted``, ``ImageError``) come from ``fpstate.errors``.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypedDict, final, type_check_only

from typing_extensions import Buffer, CapsuleType

EXIT_NONE: Final[int]
EXIT_CALL: Final[int]
EXIT_PORT: Final[int]
EXIT_FAULT: Final[int]
EXIT_PREEMPTED: Final[int]
EXIT_REFUSED: Final[int]
EXIT_EXPIRED: Final[int]
EXIT_SEGMENT: Final[int]

fpstate_c_api: Final[CapsuleType]
"""The C interface: a capsule named ``fpstate._core.fpstate_c_api`` around a ``struct fpstate_api``.

The struct and what its functions do are documented in ``fpstate.h`` (``fpstate.get_include()``), and in docs/c-api.md.
"""

@type_check_only
class Features(TypedDict):
    xcr0: int
    managed_mask: int
    dynamic_mask: int
    permission: int | None
    area_size: int
    xsavec: bool
    xgetbv1: bool
    pkru: bool
    fsgsbase: bool

def cpuid(leaf: int, subleaf: int = 0, /) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX, EDX of CPUID; zeros above the highest leaf."""

def xgetbv(index: int, /) -> int:
    """Return XCR0 (0) or XCR0 & XINUSE (1). Raises UnsupportedHere where the instruction would fault."""

def mxcsr_mask() -> int:
    """Return the defined bits of MXCSR, from an FXSAVE image; 0xFFBF stands for 0 (SDM vol. 1, 11.6.6)."""

def features() -> Features:
    """Return what the core found: enabled components, those it saves itself (all but PKRU), instructions.

    ``dynamic_mask``: those of ``managed_mask`` that IA32_XFD can hold back. ``permission``: what the kernel permits
    this process now (ARCH_GET_XCOMP_PERM), None where it does not say. Of ``dynamic_mask`` an image may state what is
    in ``permission``, of the rest of ``managed_mask`` everything. ``area_size``: bytes of the largest image.
    """

def tsc_hz() -> int:
    """Return the time stamp counter's cycles a second, measured once against CLOCK_MONOTONIC."""

def exchange(image: Buffer, mask: int, compact: bool = False) -> bytes:
    """Load an image with XRSTOR and save the registers at once, by XSAVE or, ``compact``, by XSAVEC.

    The calling thread's vector registers become initial, its control words stay. Raises RestoreFault where
    the processor refuses the image, which says by which exception and why; ImageError where it is longer than any,
    UnsupportedHere.
    """

def check_image(image: Buffer, /) -> None:
    """Raise ImageError for what XRSTOR of everything managed would refuse: with #GP, or with #NM.

    The error says where and what. The kernel is asked for permission only where the image states a component of
    ``dynamic_mask``.
    """

def unspill(destination: Buffer, moves: Sequence[tuple[int, int, int]], wipe: bool = True, /) -> None:
    """Copy pieces (from, to, size) of this thread's spill area to ``destination``, then wipe the area if asked to.

    Raises ValueError for a piece outside of either; the area is wiped all the same.
    """

def save_state(buffer: Buffer | None, room: int, /) -> tuple[int, bool]:
    """Save the thread's registers to a VSO's buffer, laid out for ``room``, with the chosen core.

    Returns what is in use, and whether the state lies in this thread's spill area, laid out for everything managed,
    because the buffer (None: there is none) has no room for it: then nothing was written to the buffer. The registers
    stay as they are. Raises ValueError for a buffer that is no XSAVE area, or too small for ``room``.
    """

def load_state(buffer: Buffer | None, /) -> None:
    """Load a VSO's image, or with None the initial state, over everything that the core manages.

    Raises ImageError for what XRSTOR would refuse, as ``check_image`` does, and does not load it; RestoreFault where
    it refuses all the same. A standard-format XRSTOR reads up to byte ``area_size``: give it a slot of a ``Slab``.
    """

def load_spilled() -> None:
    """Load the state in this thread's spill area again. Raises RestoreFault where there is none."""

@type_check_only
class Choice(TypedDict):
    core: str
    reason: str
    pairs: int
    mismatches: int
    permille: tuple[int, int, int]
    settled: tuple[int, int, int]
    test_cycles: int
    measure_cycles: int

def core_choice(setting: str | None = None, candidate: str | None = None) -> Choice:
    """Return which core switches, chosen at the first use, and why: the self-test's outcome and what was measured.

    ``permille`` is the fast core's time by the portable one's with in use what a glibc process has, all but x87, and
    everything; ``settled`` what was in use then, after contexts with everything. With arguments it says what would be
    chosen for this ``setting`` of FPSTATE_CORE and this core in the fast one's place, and changes nothing. Raises
    SettingError for a setting that is unknown, UnsupportedHere where it asks for a core that cannot be had.
    """

def core_use(name: str, /) -> str:
    """Let ``portable`` or ``fast`` be the chosen core from now on, for measurements; returns the earlier one's name.

    Raises SettingError for another name, UnsupportedHere where the fast core cannot run or fails its self-test.
    """

def core_trial(
    core: str,
    count: int = 0,
    seed: int = 1,
    *,
    moves: int = -1,
    offsets: tuple[int, int, int, int] | None = None,
    standard: bool = False,
) -> dict[str, int | bool]:
    """Switch between random states with a core, and compare every register with what XRSTOR and XSAVE make of them.

    ``count`` is how many pairs, 0 for every pair of in-use classes once. ``moves`` holds the fast core to these
    components, so that the others go through XSAVE-family instructions. ``offsets`` are where AVX, opmask, ZMM_Hi256
    and Hi16_ZMM lie, instead of where this processor has them; ``standard`` has areas in the standard format.
    Cores: portable, portable-xsave (for the standard format), fast, fast-avx512, fast-avx, and those that get one
    thing wrong: without-k1-to-k7, without-mxcsr, without-mxcsr-avx, without-x87-end, without-x87-end-avx. Returns
    ``pairs``, ``mismatches`` and, of the first of these, the components in use ``from`` and ``to``, the ``component``,
    and whether it was ``saved`` wrong, else loaded. Raises UnsupportedHere for a core that cannot run here.
    """

def core_cycles(core: str, one: int, other: int, rounds: int, /) -> tuple[int, int]:
    """Return the time stamp cycles of ``rounds`` switches to and fro between states with these components in use.

    A state with everything was in the registers before. Also returns what is in use in the second state in the end:
    more than ``other`` where this core leaves components in use that it made initial.
    """

def switch(outgoing: Context, incoming: Context, next: Context | None = None, /) -> None:
    """Save the thread's registers to ``outgoing`` and load ``incoming``; fetch ``next`` into the cache.

    Everything that the core manages (XCR0 without PKRU) is saved and loaded: nothing of one context stays in the
    registers for the next. The thread goes on with the incoming state: rounding, exception masks, x87 stack and all.
    What Python's own code leaves in the registers between two calls is part of what is saved. An ``outgoing`` that
    holds no memory gets some, an ``incoming`` that is parked is unpacked. Raises PoolExhausted, and then nothing has
    changed.
    """

def bench_slots(image: Buffer, count: int, other: Buffer = ..., /) -> object:
    """Return ``count`` slots, on transparent huge pages, with compacted images of what ``image`` holds.

    Every second slot has ``other``, where there is one. For measurements alone. Raises RestoreFault, ImageError,
    UnsupportedHere where there is no XSAVEC.
    """

def bench_walk(slots: object, way: str, order: Buffer, start: int, steps: int, /) -> int:
    """Return the processor time in ns of a walk from slot ``order[start]`` over the next ``steps`` of u32 ``order``.

    At each step ``xsavec`` and ``fxsave`` save the slot behind and restore the one ahead, by that instruction;
    ``read`` reads one word of each cache line that the image ahead uses. Raises ValueError.
    """

def bench_size(slots: object, /) -> tuple[int, int]:
    """Return the distance of two slots in bytes, and the cache lines that an image in them uses."""

def bench_ring(contexts: list[Context], /) -> object:
    """Return contexts in the order of their turns, for the three below. Raises TypeError."""

def bench_fill(ring: object, image: Buffer, first: int = ..., step: int = ..., /) -> None:
    """Let every ``step``-th context from ``first`` on hold what ``image`` does. Raises RestoreFault, ImageError."""

def bench_switches(ring: object, way: str, start: int, steps: int, /) -> int:
    """Return the processor time in ns of ``steps`` switches in C, from ring member ``start`` on.

    ``switch`` calls the switch in a loop, ``next`` names the successor too, ``rotate`` is one call that does them
    all, without looking ahead or, as ``rotate next``, with it. Raises ValueError, PoolExhausted.
    """

def bench_control(switches: int, /) -> int:
    """Return the processor time in ns of so many switches of MXCSR and FCW alone, in C."""

def ptrace_snapshot(
    pid: int, capacity: int, limit_ns: int, /
) -> tuple[list[tuple[int, bytes | None, int, bytes]], int, int]:
    """Stop every thread of another process, read each one's NT_X86_XSTATE regset, and let them go.

    Returns (tid, image or None, errno, name) for each thread that has not ended, the nanoseconds from the first
    request to stop to the last release, and the longest that one thread stood still. At most ``capacity`` bytes an
    image, a multiple of 8. A thread that has not stopped ``limit_ns`` after the start has ETIMEDOUT. Nothing stays
    stopped or traced, and no signal is lost; signals to the calling thread wait. Runs without the GIL. Raises
    OSError where the process cannot be listed, and for this process itself.
    """

def ptrace_edit(
    tid: int, capacity: int, limit_ns: int, edit: Callable[[bytes], bytes | None], /
) -> tuple[bytes, bytes | None, int]:
    """Stop one thread of another process, pass its image to ``edit``, and write what that returns.

    Returns the image before, what was read back after, and the nanoseconds that the thread stood still; nothing is
    written, and None read back, where ``edit`` returns None. What ``edit`` raises is raised here, after the thread
    was let go. Raises OSError: EINVAL where the kernel refuses the image, ETIMEDOUT where the thread does not stop
    in ``limit_ns``, or ``edit`` takes longer than that and a second.
    """

def classify(
    source: Buffer,
    stride: int,
    count: int,
    xcomp_bv: int,
    allowed: int,
    key_mask: int,
    avx_carries_mxcsr: bool,
    /,
) -> tuple[list[tuple[int, int]], int]:
    """Count images at equal strides by key: XSTATE_BV & ``key_mask``.

    With ``avx_carries_mxcsr``, bit 63 of the key is set where AVX but not SSE states an MXCSR other than 1F80H.
    Returns (key, count) in the order of their first images, and the index of the first image whose XCOMP_BV is
    another or whose XSTATE_BV has bits that are not ``allowed``; -1: there is none. Raises ImageError for more than
    4096 keys, ValueError where the images reach beyond the buffer. Runs without the GIL.
    """

def gather(
    source: Buffer,
    stride: int,
    count: int,
    xcomp_bv: int,
    allowed: int,
    key_mask: int,
    avx_carries_mxcsr: bool,
    extent: int,
    classes: list[tuple[int, int, int, int, bytes, list[tuple[int, int, int]]]],
    destination: Buffer,
    in_order: bool,
    indices: Buffer | None = None,
    stream: int = -1,
) -> int:
    """Make a record of each image, ``extent`` bytes of which are looked at; the rest as for ``classify``.

    A class is (key, first byte in ``destination``, distance of its records, how many fit, a record's bytes, moves
    from image to record). Records are in the order of the images, or class by class; the latter's images are listed in
    ``indices``, four bytes each. ``stream`` writes past the caches: 1 where alignment permits, 0 never, -1 as the
    size suggests. Returns the index of the first image that is illegal or has no class or record left; -1 when all
    are done. Raises ValueError for anything that would reach beyond a buffer, and where they overlap. Runs without
    the GIL.
    """

@final
class Context:
    """One full register state. Without memory at first: it is initial.

    Raises, when the first one is made, SettingError and UnsupportedHere as ``core_choice`` does. Not for several
    threads at once.
    """

    def __new__(cls) -> Context: ...
    def load(self, image: Buffer, /) -> None:
        """Let it hold the state that XRSTOR makes of an image, in either of this processor's formats.

        The image is checked, and then passed through the registers under a guard: the thread's vector registers become
        initial, its control words stay. Raises ImageError for what XRSTOR would refuse, as ``check_image`` does,
        RestoreFault where it refuses all the same, PoolExhausted.
        """

    def image(self) -> bytes:
        """Return the state: everything managed, compacted where there is XSAVEC; what is absent has initial bytes."""

    def save(self) -> None:
        """Let it hold the thread's registers. Raises PoolExhausted."""

    def restore(self) -> None:
        """Let the thread go on with its state. Raises PoolExhausted where it was parked."""

    def park(self) -> int:
        """Pack it into as few bytes as its live registers need; returns the bytes given back. Raises PoolExhausted."""

    def wipe(self) -> None:
        """Throw its state away: it is initial, and holds no memory."""

    @property
    def in_use(self) -> int:
        """The components that the state holds (XSTATE_BV)."""

    @property
    def size(self) -> int:
        """Bytes of memory for the state: 0 where it is initial, fewer where it is parked."""

    @property
    def parked(self) -> bool: ...

@final
class Order:
    """Contexts in the order of their turns: ``indices`` into them, or one after the other.

    Raises ValueError for an empty order, IndexError for an index that is none.
    """

    def __new__(cls, contexts: Sequence[Context], indices: Sequence[int] | None = None) -> Order: ...
    def __len__(self) -> int: ...
    def run(self, switches: int, prefetch: bool | None = None) -> None:
        """Load the context whose turn it is, switch to the next so many times, and save the last; all in C.

        ``prefetch`` fetches the successors' states early; None: where all of them exceed the second-level cache. The
        thread's vector registers are initial afterwards, its control words as before. Every few milliseconds the last
        one is saved, other threads may take the GIL, and an exception of a signal's handler ends the run. Raises that,
        PoolExhausted, or OverflowError for a number that is negative or has more than 64 bits; ``position`` then says
        whose turn it was.
        """

    @property
    def position(self) -> int: ...

@final
class Slab:
    """Equal buffers in one mapping, each aligned to 64 bytes; the buffer protocol shows all of them.

    After the last one come zeros: what a standard-format restore of the last one may read (``area_size`` bytes).
    """

    def __new__(cls, stride: int, count: int) -> Slab: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def take(self) -> int:
        """Return a free slot, all zeros. Raises PoolExhausted."""

    def give(self, slot: int, scrub: bool = True) -> None:
        """Zero a taken slot and free it. Raises VsoError where it is not taken."""

    def is_taken(self, slot: int, /) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def mapped(self) -> int:
        """Bytes of the mapping, with those after the last slot."""

    @property
    def taken(self) -> int: ...

@final
class Memory:
    """A guest's private memory between two guard pages; readable and writable at first."""

    def __new__(cls, size: int) -> Memory: ...
    def write(self, offset: int, data: Buffer, /) -> None:
        """Copy bytes in. Raises ValueError outside of the memory, or on a page that is not writable."""

    def read(self, offset: int, length: int, /) -> bytes: ...
    def protect(self, offset: int, length: int, writable: bool, executable: bool, /) -> None:
        """Set the protection of whole pages; they stay readable."""

    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...

@final
class Vcpu:
    """The general registers of one guest, where its vector state lies, and why it last left.

    Not to be changed while its queue runs (VsoError). ``registers`` are in the order of the ModRM encoding:
    rax rcx rdx rbx rsp rbp rsi rdi r8 ... r15.
    """

    def __new__(cls) -> Vcpu: ...
    def attach(self, buffer: Buffer | None, save_mask: int, /) -> None:
        """Let the state lie in ``buffer``, laid out for ``save_mask``; None and 0: it is initial, without memory.

        The core keeps the plain address: the caller keeps the memory alive. Raises ValueError for a buffer that is no
        XSAVE area, or too small for ``save_mask``.
        """

    def set_register(self, index: int, value: int, /) -> None: ...
    @property
    def registers(self) -> tuple[int, ...]: ...
    @property
    def fault(self) -> tuple[int, int, int, int, int]:
        """Signal, si_code, exception vector, its error code, and the address (CR2 of a page fault, else rip)."""
    rip: int
    rflags: int
    code_start: int
    code_end: int
    restore_mask: int
    pkru: int
    cycle_limit: int
    shrink_after: int
    @property
    def save_mask(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def spilled(self) -> int:
        """1 where the state lies in the spill area of the thread that ran it, and waits for ``unspill``."""

    @property
    def queued(self) -> bool:
        """Whether it is in a queue."""

    @property
    def exit_kind(self) -> int: ...
    @property
    def slices(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def cycles(self) -> int:
        """Time from entry to exit, in cycles of the time stamp counter: also while the thread was off its processor."""

    @property
    def ran(self) -> int:
        """What is compared with ``cycle_limit``: the same, but only while the thread ran, as its clock says.

        Counted where there is a limit, once ``cycles`` is above the lesser of a 16th of it and 2**25. So a guest has
        had its limit when it expires, and at most so much more.
        """

@final
class Queue:
    """vCPUs in a ring. ``compact=False`` acts as on a processor without XSAVEC; ``timing`` keeps samples."""

    def __new__(cls, compact: bool = ..., timing: bool = True) -> Queue: ...
    def __len__(self) -> int: ...
    def add(self, vcpu: Vcpu, /) -> None:
        """Put a vCPU behind all others. Raises VsoError where it is in a queue, spilled, or without a program."""

    def remove(self, vcpu: Vcpu, /) -> None: ...
    def run(self, quantum_ns: int, budget_ns: int, max_slices: int = 0) -> Vcpu | None:
        """Run the vCPUs in turn, without the GIL, until one needs a decision and leaves the queue.

        A timer preempts at least every ``quantum_ns``. Returns None when ``budget_ns`` or ``max_slices`` are
        used up, or the queue is empty. While it runs no signal but the core's own reaches this thread.
        Raises ValueError for a quantum below 20,000 ns: ticks would follow ticks, and nothing else would run.
        """

    def samples(self) -> bytes:
        """Return the last 65536 switch times: u32 TSC cycles from one guest's leaving to the next one's entry."""

    @property
    def switches(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def yields(self) -> int: ...
    @property
    def saves(self) -> int: ...
    @property
    def ticks_in_host(self) -> int: ...
