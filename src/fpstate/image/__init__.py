"""One state in memory: images, their registers, and the values that registers hold."""

from fpstate.image.canonical import CanonicalState
from fpstate.image.control import ControlWord, FpException, Mxcsr, Precision, Rounding, StatusWord
from fpstate.image.difference import Difference, differences
from fpstate.image.float80 import Float80, Kind
from fpstate.image.image import Image
from fpstate.image.lane import LANES
from fpstate.image.register import REGISTERS, Register
from fpstate.image.registers import Registers, initial_value
from fpstate.image.tag import Tag, abridged_tag, full_tag

__all__ = [
    "LANES",
    "REGISTERS",
    "CanonicalState",
    "ControlWord",
    "Difference",
    "Float80",
    "FpException",
    "Image",
    "Kind",
    "Mxcsr",
    "Precision",
    "Register",
    "Registers",
    "Rounding",
    "StatusWord",
    "Tag",
    "abridged_tag",
    "differences",
    "full_tag",
    "initial_value",
]
