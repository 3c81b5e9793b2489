"""The C interface as ctypes sees it, with no header: the struct of fpstate.h in its first edition."""

from __future__ import annotations

import ctypes
from types import ModuleType

NAME = b"fpstate._core.fpstate_c_api"

_context = ctypes.c_void_p
_context_pointer = ctypes.POINTER(ctypes.c_void_p)
_text = ctypes.CFUNCTYPE(ctypes.c_char_p)
_size = ctypes.CFUNCTYPE(ctypes.c_size_t)
_of_context = ctypes.CFUNCTYPE(ctypes.c_int, _context)


class Control(ctypes.Structure):
    """``struct fpstate_control``."""

    _fields_ = (("mxcsr", ctypes.c_uint32), ("fcw", ctypes.c_uint16), ("reserved", ctypes.c_uint16))


class Table(ctypes.Structure):
    """``struct fpstate_api``."""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("core", _text),
        ("core_reason", _text),
        ("context_size", _size),
        ("context_alignment", _size),
        ("create", ctypes.CFUNCTYPE(ctypes.c_int, _context_pointer)),
        ("create_in", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, _context_pointer)),
        ("destroy", ctypes.CFUNCTYPE(None, _context)),
        ("save", _of_context),
        ("restore", _of_context),
        ("switch_state", ctypes.CFUNCTYPE(ctypes.c_int, _context, _context)),
        (
            "switch_control",
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Control), ctypes.POINTER(Control)),
        ),
        ("prefetch", ctypes.CFUNCTYPE(None, _context)),
        ("park", _of_context),
    )


def address_of_table(core: ModuleType, name: bytes = NAME) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return get(core.fpstate_c_api, name)


def table_of(core: ModuleType) -> Table:
    return Table.from_address(address_of_table(core))


class Storage:
    """Aligned bytes for one context, with ``guard`` bytes behind it."""

    def __init__(self, table: Table, guard: int = 0) -> None:
        self.size, self.guard = table.context_size(), guard
        self._buffer = ctypes.create_string_buffer(self.size + guard + table.context_alignment())
        self.address = (
            -(-ctypes.addressof(self._buffer) // table.context_alignment()) * table.context_alignment()
        )

    def bytes(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def behind(self) -> bytes:
        return ctypes.string_at(self.address + self.size, self.guard)

    def fill(self, value: int) -> None:
        ctypes.memset(self.address, value, self.size + self.guard)


class Context(ctypes.c_void_p):
    """``fpstate_context *``, and the storage that it needs for as long."""

    storage: Storage


def created(table: Table) -> Context:
    context = Context()
    assert table.create(ctypes.byref(context)) == 0
    return context


def created_in(table: Table, storage: Storage) -> Context:
    context = Context()
    context.storage = storage
    assert table.create_in(storage.address, storage.size, ctypes.byref(context)) == 0
    return context
