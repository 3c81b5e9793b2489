"""Contexts used wrongly, by many at once, and in handlers; each case in a process of its own."""

from __future__ import annotations

import copy
import ctypes
import faulthandler
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from oracle import ENVIRONMENT, SANITIZED, share

from c_table import Storage, address_of_table, created_in, table_of
from fpstate import Context, Order, switch
from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN, include_dir
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import ExitKind

HERE = Path(__file__).parent
SECONDS = 120
EINVAL = 22
AVX512 = mask_of(Component.ZMM_HI256, Component.HI16_ZMM, Component.OPMASK)


def in_child(case: Callable[[], str]) -> str:
    """What a case says in a forked process that must end by itself."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        os.close(reader)
        try:
            said = case()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode()[:4096])
        os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        pytest.fail(f"no end in {SECONDS} s")
    said = os.read(reader, 4096).decode()
    os.close(reader)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


def all_of(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Python


def test_threads_may_switch_between_the_same_two_contexts(core):
    """Each switch is whole: the interpreter lets one thread in at a time."""

    def case() -> str:
        one, other, rounds, errors = Context(), Context(), share(5000), []

        def work() -> None:
            try:
                for _ in range(rounds):
                    switch(one, other)
                    switch(other, one)
            except Exception as error:
                errors.append(repr(error))

        all_of([threading.Thread(target=work) for _ in range(4)])
        return str(errors)

    assert in_child(case) == "[]"


def test_orders_may_have_contexts_in_common_that_are_parked_meanwhile(core):
    def case() -> str:
        ring, errors = [Context() for _ in range(4)], []
        orders = [Order(ring) for _ in range(3)]

        def work(order: Order) -> None:
            try:
                order.run(share(50_000))
            except Exception as error:
                errors.append(repr(error))

        def park() -> None:
            for number in range(share(400)):
                ring[number % len(ring)].park()

        all_of(
            [
                *(threading.Thread(target=work, args=(order,)) for order in orders),
                threading.Thread(target=park),
            ]
        )
        return str(errors)

    assert in_child(case) == "[]"


def test_contexts_are_used_after_a_fork_and_while_other_threads_switch(core):
    def case() -> str:
        stop, ended = threading.Event(), []

        def work() -> None:
            one, other = Context(), Context()
            while not stop.is_set():
                switch(one, other)
                switch(other, one)
                one.park()
                other.park()

        def child(mine: Context) -> None:
            contexts = [mine, *(Context() for _ in range(20))]
            for number, context in enumerate(contexts):
                switch(context, contexts[number - 1])
            for context in contexts:
                context.park()
            os._exit(0)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        mine = Context()
        for _ in range(share(20)):
            pid = os.fork()
            if pid == 0:
                child(mine)
            ended.append(os.waitpid(pid, 0)[1])
        stop.set()
        for thread in threads:
            thread.join()
        return str(set(ended))

    assert in_child(case) == "{0}"


@pytest.mark.parametrize("deed", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda deed: deed.__name__)
@pytest.mark.parametrize("kind", ["Context", "Order", "Vcpu", "Queue", "Slab", "Memory"])
def test_what_is_the_core_s_is_not_copied(native, kind, deed):
    made = {
        "Order": (lambda: Order([Context()])),
        "Slab": lambda: native.Slab(64, 1),
        "Memory": lambda: native.Memory(4096),
    }
    thing = made.get(kind, getattr(native, kind))()
    with pytest.raises(TypeError):
        deed(thing)


def test_a_context_ends_while_it_is_current(core):
    def case() -> str:
        one, other = Context(), Context()
        switch(one, other)
        del other
        gc.collect()
        switch(Context(), one)
        return "alive"

    assert in_child(case) == "alive"


def test_a_python_handler_may_switch_while_its_thread_does(core):
    def case() -> str:
        one, other, mine, its = Context(), Context(), Context(), Context()
        handled = []

        def handler(*_: object) -> None:
            handled.append(1)
            switch(one, other)
            switch(other, one)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        deadline = time.monotonic() + 30
        while len(handled) < share(100) and time.monotonic() < deadline:
            switch(mine, its)
            switch(its, mine)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return "handled" if handled else "no handler ran"

    assert in_child(case) == "handled"


# C


def test_what_is_no_context_is_refused_by_number(core, each_core):
    table, junk = table_of(core), ctypes.create_string_buffer(b"\x5a" * 8192, 8192)
    start = -(-ctypes.addressof(junk) // 64) * 64
    storage = Storage(table)
    good = created_in(table, storage)
    refused = [table.save(start), table.restore(start), table.park(start)]
    refused += [table.switch_state(start, good), table.switch_state(good, start)]
    table.destroy(start)
    table.prefetch(start)
    assert refused == [EINVAL] * 5
    assert bytes(junk)[:8192] == b"\x5a" * 8192
    table.destroy(good)
    assert [table.save(good), table.restore(good), table.switch_state(good, good)] == [EINVAL] * 3
    table.destroy(good)


def test_storage_that_ends_beyond_memory_is_taken_at_its_word(core):
    """Its size is what the caller says; it is never looked at beyond what a context needs."""
    table = table_of(core)
    storage = Storage(table, guard=64)
    storage.fill(0xA5)
    pointer = ctypes.c_void_p()
    assert table.create_in(storage.address, (1 << 64) - 1, ctypes.byref(pointer)) == 0
    assert table.save(pointer) == 0
    assert storage.behind() == b"\xa5" * 64
    table.destroy(pointer)


@pytest.fixture(scope="module")
def handlers(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("handlers") / "handlers.so"
    sources = [HERE / "handler_switch.c", "-o", library]
    subprocess.run(
        [gcc, "-O1", "-Wall", "-shared", "-fPIC", f"-I{include_dir()}", *sources], check=True, env=ENVIRONMENT
    )
    return ctypes.CDLL(str(library))


def switched(core: ModuleType, handlers: ctypes.CDLL, count: int, *, spoil: bool) -> str:
    found = handlers.switch_in_handlers
    found.restype = ctypes.c_long
    handled = ctypes.c_long()
    wide = Cpu.host().enabled_xcr0 & AVX512 == AVX512
    wrong = found(
        ctypes.c_void_p(address_of_table(core)), ctypes.c_long(count), ctypes.c_long(30), wide, spoil,
        ctypes.byref(handled),
    )  # fmt: skip
    return f"{'handled' if handled.value else 'no handler ran'}, {'lost' if wrong else 'kept'}"


@pytest.mark.skipif(SANITIZED, reason="the sanitizers' run-time library in handlers")
def test_a_c_handler_may_switch_over_a_thread_whose_registers_are_in_use(core, each_core, handlers):
    count = share(9400)
    assert in_child(lambda: switched(core, handlers, count, spoil=False)) == "handled, kept"


@pytest.mark.skipif(SANITIZED, reason="the sanitizers' run-time library in handlers")
def test_a_handler_that_changes_one_bit_of_a_register_would_be_seen(core, each_core, handlers):
    """The negative control: of what sigreturn brings back."""
    assert in_child(lambda: switched(core, handlers, 50, spoil=True)) == "handled, lost"


# Schedulers


def test_threads_with_a_scheduler_each_among_signals_and_forks(native, built):
    def guests(engine: NativeEngine, seed: int, count: int, argument: int) -> int:
        vcpus = [
            engine.vcpu(BUILTIN["canary"].load(), seed=seed + number, argument=argument)
            for number in range(count)
        ]
        Scheduler(engine).run(vcpus)
        right = [
            vcpu.exit is not None
            and vcpu.exit.kind is ExitKind.FINISHED
            and vcpu.block is not None
            and BUILTIN["canary"].check(vcpu.block.result, vcpu.block.seed, argument, vcpu.block.features)
            is None
            for vcpu in vcpus
        ]
        return right.count(False)

    def case() -> str:
        wrong, got, ended = [], [], []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))

        def work(number: int) -> None:
            try:
                engine = NativeEngine(Manager(), timeout=60)
                wrong.extend(guests(engine, 1000 * number, 10, 50) for _ in range(share(21)))
            except BaseException as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        forks = max(1, share(3))
        while any(thread.is_alive() for thread in threads) or len(ended) < forks:
            os.kill(os.getpid(), signal.SIGUSR1)
            if len(ended) < forks:
                pid = os.fork()
                if pid == 0:
                    os._exit(guests(NativeEngine(Manager(), timeout=60), 7, 3, 50))
                ended.append(os.waitpid(pid, 0)[1])
            time.sleep(0.005)
        for thread in threads:
            thread.join()
        return f"{set(wrong)} {set(ended)} {'signals' if got else 'no signal came'}"

    assert in_child(case) == "{0} {0} signals"


# Tiles

TILES = """
import os, sys
from fpstate import Context, Cpu, Image, Layout, _core, switch
from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN
from fpstate.vso.kernel_permission import request_from_kernel
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler
rounds, core = int(sys.argv[1]), sys.argv[2]
request_from_kernel(1 << 18)
_core.core_choice(); _core.core_use(core)
cpu = Cpu.host()
layout = (Layout.compacted if _core.features()["xsavec"] else Layout.standard)(cpu, _core.features()["managed_mask"])
image = Image.initial(layout)
configuration = bytearray(64)
configuration[0] = 1
for tile in range(8):
    configuration[16 + 2 * tile], configuration[48 + tile] = 64, 16
image.registers["tilecfg"] = int.from_bytes(configuration, "little")
for tile in range(8):
    image.registers[f"tmm{tile}"] = int.from_bytes(os.urandom(1024), "little")
for number in range(32):
    image.registers[f"zmm{number}"] = int.from_bytes(os.urandom(64), "little")
words = lambda data: {data[at:at + 8] for at in range(0, len(data) - 7, 8)} - {bytes(8)}
secret = words(image.to_bytes()[576:])
full, host, bad = Context(), Context(), 0
full.load(image.to_bytes())
for number in range(rounds):
    fresh, probe = Context(), Context()
    switch(host, full)
    switch(full, fresh)
    switch(probe, host)
    bad += bool(words(probe.image()) & secret)
    if number % 2:
        full.park()
same = Image(full.image()[:layout.size], layout) == image
manager = Manager()
manager.request(18)
engine = NativeEngine(manager, timeout=60)
canary = BUILTIN["canary"]
every = (1).to_bytes(8, "little")
vcpus = [engine.vcpu(canary.load(), seed=seed, argument=200, input=every) for seed in range(16)]
report = Scheduler(engine).run(vcpus)
wrong = [canary.check(v.block.result, v.block.seed, 200, v.block.features) if v.block else str(v.exit) for v in vcpus]
print(bad, same, sum(map(bool, wrong)), report.yields >= 16 * 200, bool(vcpus[0].block.features >> 18 & 1))
"""


@pytest.mark.parametrize("switcher", ["portable", "fast"])
def test_tiles_stay_with_their_context_and_with_guests_that_yield(native, built, switcher):
    if not native.features()["dynamic_mask"] & mask_of(Component.TILEDATA):
        pytest.skip("AMX: TILEDATA on request (XCR0[18], CPUID.(0DH,1):EAX[4])")
    done = subprocess.run(
        [sys.executable, "-c", TILES, str(share(200)), switcher],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout.split() == ["0", "True", "0", "True", "True"]
