"""Raw bytes: XSAVE images of both formats, FXSAVE, FSAVE, signal frames, and KVM's two buffers."""

from __future__ import annotations

from fpstate.image.legacy import to_fsave, to_fxsave
from fpstate.testing.container import kvm_fpu, kvm_xsave, signal_frame
from fpstate.testing.core import register_set

from .draw import Draw
from .states import altered, image


def raw(draw: Draw, *, far: bool = False) -> bytes:
    """One image, or a signal frame."""
    way = draw.below(8)
    if way < 2:
        return draw.mangled(altered(draw, register_set(image(draw))))
    if way == 2:
        return draw.mangled(altered(draw, image(draw).to_bytes()))
    if way < 5:
        return draw.mangled(altered(draw, image(draw, compacted=True).to_bytes()))
    if way == 5:
        return draw.mangled(to_fxsave(image(draw)), 80)
    return draw.mangled(to_fsave(image(draw)), 80) if way == 6 else _frame(draw)


def kvm(draw: Draw, *, far: bool = False) -> bytes:
    """What KVM_GET_XSAVE, KVM_GET_XSAVE2 or KVM_GET_FPU gave."""
    if draw.chance(60):
        return draw.mangled(kvm_fpu(image(draw), mxcsr=draw.odd(0, 4, 40)), 60)
    size = draw.pick((4096, 4096, 12_288, 11_008))
    return draw.mangled(altered(draw, kvm_xsave(image(draw), size=size)))


def _frame(draw: Draw) -> bytes:
    machine = draw.pick(("x86-64", "x86-64", "i386"))
    xfeatures = draw.odd(7, 8, 60) if draw.chance(60) else None
    frame = signal_frame(image(draw), xfeatures=xfeatures, machine=machine)
    if machine == "i386":
        return draw.mangled(frame[:112] + altered(draw, frame[112:]))
    return draw.mangled(altered(draw, frame))
