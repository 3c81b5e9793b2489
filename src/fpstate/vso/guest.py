"""A vCPU's state: ``struct fpu_guest``, with what KVM asks of it.

Sources: Linux ``arch/x86/kernel/fpu/core.c`` (``fpu_alloc_guest_fpstate``, ``fpu_enable_guest_xfd_features``,
``fpu_update_guest_xfd``, ``fpu_copy_guest_fpstate_to_uabi``, ``fpu_copy_uabi_to_guest_fpstate``), and
``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import (
    LEGACY,
    USER_DYNAMIC,
    component_name,
    mask_of,
    mask_text,
)
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError, UnsupportedComponent, VsoError
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Severity
from fpstate.image.rules import check
from fpstate.image.subject import XSTATE_BV_AT
from fpstate.vso.fpstate import PKRU, Fpstate, stated_components
from fpstate.vso.live_registers import LiveRegisters
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.placement import copier
from fpstate.vso.uabi import export_uabi, merge_uabi

UABI_MINIMUM: Final = 4096
"""Bytes of ``struct kvm_xsave``: no export is shorter."""


class GuestFpu:
    """One vCPU's state and what its exports need. The first of a manager freezes its guest permission.

    It starts with the guest default, of which CET_S is a part, and with IA32_XFD 0, as after a reset. ``uabi_size``
    are the bytes of an export: 4096, or more once a dynamic component was enabled. ``xfd_err`` is the guest's
    IA32_XFD_ERR, ``pkru`` its PKRU. ``permitted`` narrows the default. ``confidential``: the registers are
    encrypted (SEV-ES, TDX).
    """

    def __init__(self, manager: Manager, *, permitted: int | None = None, confidential: bool = False) -> None:
        config = manager.config
        default = config.guest_default.features & manager.permissions.mask(Kind.GUEST)
        if permitted is not None:
            default &= permitted
        vso = manager.create(Kind.GUEST, permitted=default)
        self.manager = manager
        self.fpstate = Fpstate(manager, vso, confidential=confidential)
        self.xfeatures = default
        self.uabi_size = max(UABI_MINIMUM, config.user_default.size)
        self.xfd_err = 0
        self.pkru = 0

    @property
    def user_xfeatures(self) -> int:
        """The user components that its exports may have."""
        return self.fpstate.user_xfeatures

    @property
    def xfd(self) -> int:
        """The guest's IA32_XFD; see ``update_xfd``."""
        return self.fpstate.xfd

    @property
    def in_use(self) -> bool:
        """Whether a task has swapped it in."""
        return self.fpstate.in_use

    @property
    def confidential(self) -> bool:
        """Whether the registers are encrypted, and so neither saved nor restored nor exported."""
        return self.fpstate.confidential

    def update_xfd(self, value: int) -> None:
        """Write the guest's IA32_XFD: into the register too where it is swapped in.

        What the saved state holds of disabled components is dropped, so that XFD[i]=1 implies XSTATE_BV[i]=0: a
        restore would raise #NM otherwise, in the host. Registers that are live need nothing: a save takes disabled
        components for initial. Raises UnsupportedComponent for bits that the guest cannot set (#GP in the guest).
        """
        if excess := value & ~(self.xfeatures & USER_DYNAMIC):
            component = (excess & -excess).bit_length() - 1
            raise UnsupportedComponent(
                component,
                f"XFD[{component}] cannot be set: {component_name(component)} is not enabled in this guest (#GP)",
                help="enable_features(), after the permission was requested and before the first guest",
            )
        if self.fpstate.loaded_on is None:
            self._drop(value)
        else:
            self.fpstate.loaded_on.xfd = value
        self.fpstate.xfd = value

    def sync_xfd(self, processor: LiveRegisters) -> None:
        """Take IA32_XFD from the processor, where the guest writes it itself (``fpu_sync_guest_vmexit_xfd_state``).

        Raises VsoError where the guest's registers are not in that processor: its IA32_XFD is another's then.
        """
        if self.fpstate.loaded_on is not processor:
            raise VsoError("the guest's registers are not in this processor", help="swap it in first")
        self.fpstate.xfd = processor.xfd

    def enable_features(self, features: int) -> None:
        """Enable dynamic components, as KVM_SET_CPUID2 does (``fpu_enable_guest_xfd_features``).

        Raises PermissionDenied where guest permission lacks them; nothing changed then.
        """
        wanted = features & USER_DYNAMIC & ~self.xfeatures
        if not wanted:
            return
        self.fpstate.enable(wanted)
        self.xfeatures |= wanted
        self.uabi_size = max(self.uabi_size, self.manager.permissions.user_size(Kind.GUEST))

    def clear_component(self, component: int) -> None:
        """Make one component initial, as INIT does with MPX and CET (``fpstate_clear_xstate_component``)."""
        self._drop(mask_of(component))

    def export(self, size: int | None = None, *, features: int | None = None) -> bytes:
        """Return ``size`` bytes (default: ``uabi_size``) of the state in the standard format.

        ``features`` narrows it to components that the guest may know, x87 and SSE staying in. Raises ImageError
        for a size that is too small, as KVM_GET_XSAVE refuses it, and VsoError while the state is swapped in or
        where it is confidential.
        """
        self._check_readable("it can be exported")
        size = self.uabi_size if size is None else size
        if size < self.uabi_size:
            raise ImageError(
                f"{size} bytes, and exports of this guest have {self.uabi_size}: nothing is cut off",
                offset=size,
                found=size,
                expected=self.uabi_size,
                help="take KVM_GET_XSAVE2, and as many bytes as KVM_CAP_XSAVE2 says",
            )
        user = self.user_xfeatures | LEGACY
        data = export_uabi(
            self.fpstate.vso.image(),
            self.manager.config,
            user if features is None else user & (features | LEGACY),
            self.pkru,
        )
        if not self.manager.config.cpu.has("XSAVE"):
            data = data[:XSTATE_BV_AT] + LEGACY.to_bytes(8, "little") + data[XSTATE_BV_AT + 8 :]
        return data.ljust(size, b"\0")

    def import_(
        self, data: bytes | bytearray | memoryview, *, xcr0: int | None = None, mask_disabled: bool = False
    ) -> int:
        """Replace the user components by those of an export; supervisor components stay.

        ``xcr0`` bounds what is taken (default: all that the guest may hold). PKRU keeps its value where XSTATE_BV
        lacks it, unlike any other component. Components that XFD holds back are refused, or with ``mask_disabled``
        left out, as KVM_SET_XSAVE does; returns what was left out. Raises ImageError with the offset and both
        values, and VsoError as ``export`` does; the state is then what it was.
        """
        self._check_readable("it can be imported")
        layout = Layout.standard(self.manager.config.cpu, self.user_xfeatures | LEGACY)
        incoming = bytearray(data)
        left_out = self._check_incoming(incoming, layout, xcr0, mask_disabled)
        stated = int.from_bytes(incoming[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little") & ~left_out
        incoming[XSTATE_BV_AT : XSTATE_BV_AT + 8] = stated.to_bytes(8, "little")
        image = Image(incoming[: layout.size], layout, "uabi")
        kernel = self.manager.config.kernel_layout(self.xfeatures & ~PKRU)
        merged = merge_uabi(image, self.fpstate.vso.image(), kernel)
        self.manager.store(self.fpstate.vso, stated_components(merged), merged.layout, copier(merged))
        if stated & PKRU:
            self.pkru = image.registers["pkru"]
        return left_out

    def free(self) -> None:
        """Give the state back, scrubbed. Raises VsoError while a task has it swapped in."""
        self.fpstate.check_swapped_out("it can be freed")
        self.manager.free(self.fpstate.vso)

    def _drop(self, features: int) -> None:
        if not self.confidential:
            self.fpstate.drop(features)

    def _check_readable(self, deed: str) -> None:
        if self.confidential:
            raise VsoError(
                "the state is confidential: the host has nothing of it",
                help="the firmware's own calls move it",
            )
        self.fpstate.check_swapped_out(deed)

    def _check_incoming(self, data: bytearray, layout: Layout, xcr0: int | None, mask_disabled: bool) -> int:
        """Raise where KVM would refuse the bytes; return the components that are to be left out."""
        cpu = self.manager.config.cpu
        allowed = layout.mask if xcr0 is None else layout.mask & (xcr0 | LEGACY)
        target = Target.from_cpu(cpu, permitted=USER_DYNAMIC).with_(
            user_xfeatures=layout.mask, kvm_xcr0=allowed, guest_xcr0=allowed, guest_xfd=self.xfd
        )
        for finding in check(data, Consumer.KVM, target):
            if finding.severity is Severity.ERROR:
                raise ImageError(
                    f"{finding.id}: {finding.message} ({finding.source})",
                    offset=finding.offset,
                    found=finding.found,
                    expected=finding.expected,
                    help=finding.help,
                )
        stated = int.from_bytes(data[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little")
        disabled = stated & self.xfd
        if disabled and not mask_disabled:
            raise ImageError(
                f"XSTATE_BV {stated:#x} has {mask_text(disabled)}, which IA32_XFD {self.xfd:#x} holds back",
                offset=XSTATE_BV_AT,
                found=stated,
                expected=stated & ~self.xfd,
                help="write IA32_XFD first, or leave the component out (mask_disabled)",
            )
        return disabled
