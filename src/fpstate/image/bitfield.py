"""Integers with named bit fields: the base of the control and status registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from fpstate.errors import NumberError

T = TypeVar("T")


class BitField(Generic[T]):
    """A descriptor for ``width`` bits from bit ``shift`` up, read as a ``kind``."""

    def __init__(self, shift: int, width: int, kind: Callable[[int], T]) -> None:
        self.shift = shift
        self.mask = (1 << width) - 1
        self.kind = kind

    @overload
    def __get__(self, instance: None, owner: type) -> BitField[T]: ...
    @overload
    def __get__(self, instance: BitRegister, owner: type) -> T: ...
    def __get__(self, instance: BitRegister | None, owner: type) -> BitField[T] | T:
        if instance is None:
            return self
        return self.kind(instance.bits >> self.shift & self.mask)


@dataclass(frozen=True)
class BitRegister:
    """A register's bits as one unsigned integer; subclasses name the fields.

    ``int()`` gives the bits back. Raises ``NumberError`` where ``bits`` does not fit the register.
    """

    bits: int

    WIDTH: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if not 0 <= self.bits < 1 << self.WIDTH:
            raise NumberError(f"{type(self).__name__}: {self.bits:#x} does not fit {self.WIDTH} bits")

    def __int__(self) -> int:
        return self.bits

    def __index__(self) -> int:
        return self.bits

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of the fields, in the order in which the class states them."""
        return [name for name, value in vars(cls).items() if isinstance(value, BitField)]

    def replace(self, **values: int) -> Self:
        """Return a copy with the named fields changed.

        Raises ``NumberError`` for a name that is no field and for a value that its field cannot hold.
        """
        bits = self.bits
        for name, value in values.items():
            field: Any = vars(type(self)).get(name)
            if not isinstance(field, BitField):
                known = ", ".join(self.field_names())
                raise NumberError(f"{type(self).__name__} has no field {name!r}", help=f"fields: {known}")
            if not 0 <= value <= field.mask:
                raise NumberError(f"{type(self).__name__}.{name}: {value} is not in 0..{field.mask}")
            bits = bits & ~(field.mask << field.shift) | int(value) << field.shift
        return type(self)(bits)

    def _raised(self, *names: str) -> list[str]:
        """The upper-case names of those one-bit fields that are set."""
        return [name.upper() for name in names if getattr(self, name)]
