"""The part of CRIU's core images that is read here, as protobuf messages that are built when they are asked for.

Everything is optional, whatever CRIU requires: what is missing is then a finding, and not a failure to parse.

Source: CRIU ``images/core.proto`` and ``images/core-x86.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fpstate.errors import UnsupportedHere

_PACKAGE: Final = "fpstate.criu"
_REPEATED, _OPTIONAL = "repeated", "optional"

MESSAGES: Final[Mapping[str, tuple[tuple[str, int, str, str], ...]]] = {
    "regs": (("mode", 28, _OPTIONAL, "uint32"),),
    "cet": (("cet", 1, _OPTIONAL, "uint64"), ("ssp", 2, _OPTIONAL, "uint64")),
    "xsave": (
        ("xstate_bv", 1, _OPTIONAL, "uint64"),
        ("ymmh_space", 2, _REPEATED, "uint32"),
        ("bndreg_state", 3, _REPEATED, "uint64"),
        ("bndcsr_state", 4, _REPEATED, "uint64"),
        ("opmask_reg", 5, _REPEATED, "uint64"),
        ("zmm_upper", 6, _REPEATED, "uint64"),
        ("hi16_zmm", 7, _REPEATED, "uint64"),
        ("pkru", 8, _REPEATED, "uint32"),
        ("cet", 9, _OPTIONAL, "cet"),
    ),
    "fpregs": (
        *((name, number, _OPTIONAL, "uint32") for number, name in enumerate(("cwd", "swd", "twd", "fop"), 1)),
        ("rip", 5, _OPTIONAL, "uint64"),
        ("rdp", 6, _OPTIONAL, "uint64"),
        ("mxcsr", 7, _OPTIONAL, "uint32"),
        ("mxcsr_mask", 8, _OPTIONAL, "uint32"),
        ("st_space", 9, _REPEATED, "uint32"),
        ("xmm_space", 10, _REPEATED, "uint32"),
        ("xsave", 13, _OPTIONAL, "xsave"),
    ),
    "thread_info_x86": (("gpregs", 2, _OPTIONAL, "regs"), ("fpregs", 3, _OPTIONAL, "fpregs")),
    "task_core_entry": (("comm", 6, _OPTIONAL, "bytes"),),
    "core_entry": (
        ("mtype", 1, _OPTIONAL, "uint32"),
        ("thread_info", 2, _OPTIONAL, "thread_info_x86"),
        ("tc", 3, _OPTIONAL, "task_core_entry"),
    ),
}
"""Message to its fields: name, number, label, and the type, which is a message of this table or a scalar."""


@cache
def core_entry() -> Any:  # noqa: ANN401 - a class that protobuf makes at run time
    """Return the class of CORE_ENTRY; raises UnsupportedHere where protobuf is not installed."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as error:
        raise UnsupportedHere(
            "CRIU images: the package protobuf is not installed",
            help="pip install 'fpstate[criu]'",
        ) from error
    kinds: Any = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fpstate/criu.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, label, type_name in fields:
            entry = message.field.add(
                name=field, number=number, label=getattr(kinds, f"LABEL_{label.upper()}")
            )
            if type_name in MESSAGES:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{type_name}"
            else:
                entry.type = getattr(kinds, f"TYPE_{type_name.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.core_entry"))


def decode_error() -> type[Exception]:
    """Return what protobuf raises for bytes that are no message."""
    from google.protobuf.message import DecodeError

    found: type[Exception] = DecodeError
    return found
