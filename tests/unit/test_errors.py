"""Errors keep what they carry when they are copied, or come from another process."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator

import pytest

from fpstate import errors
from fpstate.arch import Cpu
from fpstate.engine.model import Processor
from fpstate.errors import FpStateError, PermissionDenied, ProcessorFault
from fpstate.image.difference import Difference
from fpstate.source.rewrite import ReadBackError
from fpstate.vso import FpuConfig, Manager

VALUES = {
    "int": 7,
    "str": "what it is",
    "list[str]": ["zen4"],
    "tuple[Any, ...]": (1, "two"),
    "list[Difference]": [Difference("mxcsr", 0x1F80, 0x1F81)],
}
"""A value for each type of an argument; None where it may be."""


def kinds(kind: type[FpStateError] = FpStateError) -> Iterator[type[FpStateError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from kinds(each)


def made(kind: type[FpStateError]) -> FpStateError:
    """An error of a kind, with every argument given."""
    values = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        wanted = str(parameter.annotation).removesuffix(" | None")
        values[name] = VALUES.get(wanted, 9)
    positional = [
        values.pop(name)
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    return kind(*positional, **values)


def pickled(error: FpStateError) -> FpStateError:
    found: FpStateError = pickle.loads(pickle.dumps(error))
    return found


def test_every_kind_of_the_module_is_looked_at():
    listed = {
        each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, FpStateError)
    }
    assert listed | {ReadBackError} <= set(kinds())
    assert len(listed) > 20


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize(
    "kind", sorted(kinds(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_an_error_is_the_same_again(
    kind: type[FpStateError], again: Callable[[FpStateError], FpStateError]
) -> None:
    error = made(kind)
    error.add_note("a note")
    found = again(error)
    assert type(found) is kind
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))
    assert (found.help, found.exit_code) == (error.help, error.exit_code)


def test_errors_that_were_raised_are_too():
    cpu = Cpu.catalog("emerald-rapids")
    with pytest.raises(ProcessorFault) as fault:
        Processor.under_linux(cpu).tilezero(0)
    found = pickled(fault.value)
    assert isinstance(found, ProcessorFault)
    assert (found.vector, found.mnemonic, str(found)) == (6, "#UD", str(fault.value))
    manager = Manager(config=FpuConfig.from_cpu(cpu))
    vso = manager.create()
    with pytest.raises(PermissionDenied) as denied:
        manager.check_use(vso, 1 << 18)
    found = pickled(denied.value)
    assert isinstance(found, PermissionDenied)
    assert found.component == 18
