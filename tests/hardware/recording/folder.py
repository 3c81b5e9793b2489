"""A folder of recorded answers: which files there are, and how each is made on this machine."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fpstate.engine.kvm.device import Device
from fpstate.errors import KvmError, UnsupportedHere
from recorded import Case, Oracles

from .child import Child, compile_child
from .guests import record_guests
from .host import NONE, UNUSED, USED, Host, describe
from .images import record_sigreturn, record_xrstor
from .inputs import Inputs, make_pool
from .measure import has_i386_calls, kvm_here, pointer_widths, runs_32_bit_code
from .perform import record_sequences
from .regsets import record_regsets
from .traced import Traced, TraceError, compile_traced

KINDS = ("sequences", "xrstor", "sigreturn", "ptrace", "fpregs", "kvm")
DEFAULT_CASES: Mapping[str, int] = {
    "sequences": 4000,
    "xrstor": 8000,
    "sigreturn": 3000,
    "ptrace": 2000,
    "fpregs": 1000,
    "kvm": 3000,
}
_NAMES = {NONE: "none", USED: "used", UNUSED: "unused"}
PERMISSIONS = {name: permission for permission, name in _NAMES.items()}

Made = tuple[dict[str, Any], Iterator[Case]]


class MissingError(Exception):
    """A capability that this machine lacks; its name is the text."""


@dataclass(frozen=True)
class File:
    """One file: of which kind, for which state of permission, with one in so many of the kind's cases."""

    name: str
    kind: str
    permission: int
    one_in: int
    make: Callable[[int, Inputs], Made]


class Recorder:
    """Records this machine into a folder. ``missing`` says what was left out, and why."""

    def __init__(self, folder: Path, gcc: str, *, seed: int = 1) -> None:
        self.host = Host.here()
        self.gcc = gcc
        self.seed = seed
        self.pool = make_pool(seed)
        self.oracles = Oracles(folder)
        self.missing: dict[str, str] = {}
        self._work = ExitStack()
        self._built: dict[int, Path] = {}

    def __enter__(self) -> Recorder:
        self._folder = Path(self._work.enter_context(tempfile.TemporaryDirectory()))
        self._child = compile_child(self.gcc, self._folder)
        with self.new_child(NONE) as child:
            self.pointers = pointer_widths(child)
            self.short = runs_32_bit_code(child)
            self.i386_calls = has_i386_calls(child)
        return self

    def __exit__(self, *_: object) -> None:
        self._work.close()

    def new_child(self, permission: int) -> Child:
        """Start a child that has this permission."""
        return Child(self._child, self.host.cpu, permission=permission)

    def new_traced(self, mode: int, permission: int) -> Traced:
        """Start a process to trace; raises MissingError."""
        try:
            if mode not in self._built:
                self._built[mode] = compile_traced(self.gcc, self._folder, mode)
            return Traced(self._built[mode], self.host.cpu, permission=permission)
        except (OSError, TraceError, RuntimeError) as error:
            raise MissingError(f"a {mode}-bit process that can be traced: {error}") from error

    def files(self) -> list[File]:
        """Every file that this machine could have."""
        return [*self._sequences(), *self._restores(), *self._traced(), *self._guests()]

    def record(
        self,
        kinds: Sequence[str] = KINDS,
        cases: Mapping[str, int] | None = None,
        permission: int | None = None,
    ) -> Iterator[tuple[str, int]]:
        """Write the files of these kinds; yields each name with its number of cases. The folder must be empty."""
        self.oracles.create(describe(self.host, pointers=self.pointers, kvm=kvm_here()), self.pool)
        for file in self.files():
            if file.kind not in kinds or permission not in (None, file.permission):
                continue
            count = max(1, {**DEFAULT_CASES, **(cases or {})}[file.kind] // file.one_in)
            try:
                seed = random.Random(f"{self.seed} {file.name}").getrandbits(32)
                header, answered = file.make(count, Inputs(self.host, self.pool, seed))
                yield file.name, self.oracles.write(file.name, header, answered)
            except MissingError as error:
                self.missing[file.name] = str(error)
        self.oracles.seal()

    def _suffix(self, permission: int, unused: str = "-unused") -> str:
        if not self.host.has_tiles:
            return ""
        return {USED: "-amx", NONE: "-noamx", UNUSED: unused}[permission]

    def _sequences(self) -> Iterator[File]:
        for permission in self.host.permissions:
            name = "sequences" + self._suffix(permission, "-firstuse")
            make = partial(self._make_sequences, permission, x87=False)
            yield File(name, "sequences", permission, 10 if permission == UNUSED else 1, make)
        best = self.host.permissions[0]
        yield File("sequences-x87", "sequences", best, 4, partial(self._make_sequences, best, x87=True))

    def _make_sequences(self, permission: int, count: int, inputs: Inputs, *, x87: bool) -> Made:
        new_child = partial(self.new_child, permission)
        return record_sequences(self.host, inputs, count, permission, new_child, short=self.short, x87=x87)

    def _restores(self) -> Iterator[File]:
        for permission in self.host.permissions:
            if permission == UNUSED:
                continue  # the first of three runs is a use
            suffix = self._suffix(permission)
            yield File("xrstor" + suffix, "xrstor", permission, 1, partial(self._make_xrstor, permission))
            for table, one_in in ((64, 1), (32, 2)):
                make = partial(self._make_sigreturn, permission, table)
                yield File(f"sigreturn{table}{suffix}", "sigreturn", permission, one_in, make)

    def _make_xrstor(self, permission: int, count: int, inputs: Inputs) -> Made:
        return record_xrstor(
            self.host, inputs, count, permission, partial(self.new_child, permission), short=self.short
        )

    def _make_sigreturn(self, permission: int, table: int, count: int, inputs: Inputs) -> Made:
        if table == 32 and not self.i386_calls:
            raise MissingError("the i386 table by INT 80H (CONFIG_IA32_EMULATION)")
        return record_sigreturn(
            self.host, inputs, count, permission, partial(self.new_child, permission), table=table
        )

    def _traced(self) -> Iterator[File]:
        for kind in ("ptrace", "fpregs"):
            for permission in self.host.permissions:
                if kind == "fpregs" and permission == UNUSED:
                    continue
                make = partial(self._make_regsets, kind, 64, permission)
                yield File(f"{kind}64{self._suffix(permission)}", kind, permission, 1, make)
            yield File(f"{kind}32", kind, NONE, 1, partial(self._make_regsets, kind, 32, NONE))

    def _make_regsets(self, kind: str, mode: int, permission: int, count: int, inputs: Inputs) -> Made:
        with self.new_traced(mode, permission):
            pass  # whether it can be had at all
        new_traced = partial(self.new_traced, mode, permission)
        return record_regsets(self.host, inputs, count, permission, new_traced, mode=mode, kind=kind)

    def _guests(self) -> Iterator[File]:
        yield File("kvm", "kvm", NONE, 1, partial(self._make_guests, told=True))
        yield File("kvm-nocpuid", "kvm", NONE, 4, partial(self._make_guests, told=False))

    def _make_guests(self, count: int, inputs: Inputs, *, told: bool) -> Made:
        try:
            device = self._work.enter_context(Device())
            return record_guests(self.host, inputs, count, device, told=told)
        except (UnsupportedHere, KvmError) as error:
            raise MissingError(f"KVM: {error}") from error
