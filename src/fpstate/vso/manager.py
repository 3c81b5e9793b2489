"""The Manager: it stands between contexts, memory and permission."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from fpstate.arch.component import GUEST_SUPERVISOR, component_name, components_in, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import PermissionDenied, VsoError
from fpstate.image import Image
from fpstate.image.convert import convert
from fpstate.image.move import moves
from fpstate.vso.config import FpuConfig
from fpstate.vso.permission import Kind, Permissions, check_host_features
from fpstate.vso.placement import Copy, copier, start_image
from fpstate.vso.pool import Buffer, Pool
from fpstate.vso.vso import Vso, room_for


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the manager was made, and bytes now.

    ``static_bytes`` is what the living contexts would hold as blobs of their default size; ``bytes_*`` count
    buffers alone, not Python's objects.
    """

    contexts: int
    created: int
    saves: int
    restores: int
    growths: int
    parks: int
    denials: int
    bytes_held: int
    bytes_peak: int
    static_bytes: int


class Manager:
    """Creates VSOs, grants permission, grows and parks buffers, and counts. Thread-safe.

    ``cpu`` defaults to this processor; ``config`` stands for one where it is not derived as Linux does. ``policy``
    bounds what any context may be permitted. ``shrink_after`` is how many saves in a row must leave room unused
    before an engine parks a VSO (0: never).
    """

    def __init__(
        self,
        cpu: Cpu | None = None,
        *,
        policy: int | None = None,
        altstacks: Iterable[int] = (),
        shrink_after: int = 32,
        pool: Pool | None = None,
        config: FpuConfig | None = None,
    ) -> None:
        self.config = config or FpuConfig.from_cpu(cpu or Cpu.host())
        self.permissions = Permissions(self.config, policy=policy, altstacks=altstacks)
        self.pool = pool or Pool()
        self.shrink_after = shrink_after
        self._lock = threading.RLock()
        self._vsos: dict[int, Vso] = {}
        self._created = self._growths = self._parks = self._denials = 0
        self._saves = self._restores = 0

    def create(self, kind: Kind = Kind.HOST, *, permitted: int | None = None) -> Vso:
        """Return a new VSO in its initial state, without a buffer.

        ``permitted`` narrows what its kind is permitted; asking for more raises PermissionDenied, and asking for
        a guest-only component in a host VSO warns and raises GuestOnlyComponent. The first guest VSO freezes
        guest permission.
        """
        allowed = self.permissions.mask(kind)
        wanted = allowed if permitted is None else permitted
        if kind is Kind.HOST:
            check_host_features(wanted)
        self._check_permitted(wanted, allowed, "asked for")
        if kind is Kind.GUEST:
            self.permissions.freeze_guest()
        vso = Vso(self.config, kind, wanted)
        with self._lock:
            self._vsos[id(vso)] = vso
            self._created += 1
        return vso

    def request(self, component: int, kind: Kind = Kind.HOST) -> None:
        """Ask for a dynamic component for VSOs yet to be made; fails as ``arch_prctl`` does (Permissions.request)."""
        self.permissions.request(component, kind)

    def permit(self, vso: Vso, components: int) -> None:
        """Widen what a VSO may use by more of what its kind is permitted.

        Raises GuestOnlyComponent (and warns), or PermissionDenied; the VSO is then permitted what it was.
        """
        self._check_owned(vso)
        if vso.kind is Kind.HOST:
            check_host_features(components)
        self._check_permitted(components, self.permissions.mask(vso.kind), "asked for")
        vso.permitted |= components

    def vsos(self) -> list[Vso]:
        """Return the VSOs that live."""
        with self._lock:
            return list(self._vsos.values())

    def load(self, vso: Vso, image: Image) -> None:
        """Replace a VSO's state by an image's registers, whatever layout they come in.

        Leftovers behind clear XSTATE_BV bits stay where they are. Raises GuestOnlyComponent (and warns),
        PermissionDenied, or ImageError; the VSO then keeps its state.
        """
        registers_only = convert(image, image.layout).image
        self.store(vso, registers_only.in_use, image.layout, copier(registers_only))

    def check_use(self, vso: Vso, components: int) -> None:
        """Refuse and count a use of components that a VSO may not have: raises PermissionDenied."""
        self._check_permitted(components, vso.permitted, "used")

    def count_denial(self) -> None:
        """Count a use that an engine refused for a reason of its own."""
        with self._lock:
            self._denials += 1

    def store(self, vso: Vso, in_use: int, source: Layout, copy: Copy) -> None:
        """Put a state into a buffer of just the right size; the earlier buffer goes back, scrubbed.

        ``copy`` brings the pieces from a source laid out as ``source``. Raises as ``load`` does.
        """
        self._check_owned(vso)
        if vso.kind is Kind.HOST:
            check_host_features(in_use)
        self._check_permitted(in_use, vso.permitted, "used")
        mask = room_for(in_use)
        grown = mask & ~vso.xfeatures
        if not mask:
            self._replace(vso, None, None)
            return
        layout = self.config.kernel_layout(mask)
        buffer = self.pool.take(layout.size)
        try:
            start_image(buffer.view, layout, in_use)
            copy(buffer.view, self._pieces(source, layout, in_use))
        except BaseException:
            self.pool.give(buffer)
            raise
        self._replace(vso, buffer, layout)
        with self._lock:
            self._growths += bool(grown)

    def switch(self, outgoing: Vso, incoming: Vso) -> None:
        """Save this thread's registers to one VSO and load another's; ``outgoing`` grows where it must.

        Raises PermissionDenied where the thread uses what ``outgoing`` may not, which is then initial and so are the
        registers; PoolExhausted, and then nothing has changed; ImageError where ``incoming`` holds an illegal image, or
        a component that the kernel does not permit this process; RestoreFault where XRSTOR refuses it all the same;
        UnsupportedHere where the manager's processor is not this one.
        """
        from fpstate.vso.exchange import switch_vsos

        self._check_owned(outgoing)
        self._check_owned(incoming)
        switch_vsos(self, outgoing, incoming)

    def park(self, vso: Vso) -> int:
        """Shrink a VSO to what its saved state uses; returns the bytes that were given back, scrubbed first."""
        self._check_owned(vso)
        before = vso.size
        image = vso.image()
        in_use = image.in_use
        if room_for(in_use) == vso.xfeatures:
            return 0
        self.store(vso, in_use, image.layout, copier(image))
        with self._lock:
            self._parks += 1
        return before - vso.size

    def wipe(self, vso: Vso) -> None:
        """Throw a VSO's state away: it is initial again and holds no buffer."""
        self._check_owned(vso)
        self._replace(vso, None, None)

    def free(self, vso: Vso) -> None:
        """End a VSO; its buffer goes back, scrubbed. Raises VsoError when it was freed before or is foreign."""
        self._check_owned(vso)
        with self._lock:
            del self._vsos[id(vso)]
        vso.alive = False
        self._replace(vso, None, None)

    def count_switches(self, saves: int, restores: int) -> None:
        """Add what an engine did; engines call it when they stop running."""
        with self._lock:
            self._saves += saves
            self._restores += restores

    def statistics(self) -> Statistics:
        """Return counts and bytes as they are now."""
        with self._lock:
            return Statistics(
                contexts=len(self._vsos),
                created=self._created,
                saves=self._saves,
                restores=self._restores,
                growths=self._growths,
                parks=self._parks,
                denials=self._denials,
                bytes_held=self.pool.bytes_held,
                bytes_peak=self.pool.bytes_peak,
                static_bytes=sum(vso.max_size for vso in self._vsos.values()),
            )

    def _pieces(self, source: Layout, target: Layout, in_use: int) -> list[tuple[int, int, int]]:
        return moves(source, target, in_use)

    def _replace(self, vso: Vso, buffer: Buffer | None, layout: Layout | None) -> None:
        earlier = vso.settle(buffer, layout)
        if earlier:
            self.pool.give(earlier)

    def _check_owned(self, vso: Vso) -> None:
        vso.check_alive()
        if self._vsos.get(id(vso)) is not vso:
            raise VsoError("this VSO belongs to another manager")

    def _check_permitted(self, components: int, permitted: int, deed: str) -> None:
        refused = components & ~permitted
        if not refused:
            return
        with self._lock:
            self._denials += 1
        first = next(components_in(refused))
        kind = "guest-only " if GUEST_SUPERVISOR >> first & 1 else ""
        raise PermissionDenied(
            first,
            f"{kind}{component_name(first)} was {deed}, and only {mask_text(permitted)} is permitted",
            help="request the component before the VSO is made, or give the VSO a wider permission",
        )
