"""VSOs grow and shrink, keep their registers, give every byte back scrubbed, and hold to their permission."""

import random
import threading
import warnings

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.arch.component import GUEST_SUPERVISOR, LEGACY, USER_SUPPORTED, components_in
from fpstate.errors import (
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    ImageError,
    PermissionDenied,
    PermissionFrozen,
    PoolExhausted,
    VsoError,
)
from fpstate.image import Image, differences
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.pool import Buffer, Pool

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

AVX, TILEDATA, APX, CET_S, ZMM = (
    mask_of(component)
    for component in (Component.AVX, Component.TILEDATA, Component.APX, Component.CET_S, Component.ZMM_HI256)
)
PROCESSORS = ("zen1", "zen3", "zen4", "tiger-lake", "sapphire-rapids", "diamond-rapids-model", "haswell")
SAMPLES = {
    Component.X87: ("st0", 0x4000_C90F_DAA2_2168_C235),
    Component.SSE: ("xmm3", 0x1111_2222_3333_4444),
    Component.AVX: ("ymm3h", 0x5555),
    Component.OPMASK: ("k1", 0xFF00FF),
    Component.ZMM_HI256: ("zmm3h", 0x6666),
    Component.HI16_ZMM: ("zmm31", 0x7777),
    Component.TILEDATA: ("tmm2", 1 << 8000),
    Component.APX: ("r17", 0x1717),
}


def image_of(cpu: Cpu, mask: int, *, format: Format = Format.COMPACTED, room: int = 0) -> Image:
    """An image in which the components of ``mask`` are in use."""
    lay_out = Layout.compacted if format is Format.COMPACTED else Layout.standard
    image = Image.initial(lay_out(cpu, mask | room))
    for component in components_in(mask):
        name, value = SAMPLES[Component(component)]
        image.registers[name] = value
    assert image.in_use == mask
    return image


def usable(manager: Manager, kind: Kind = Kind.HOST) -> int:
    return manager.permissions.mask(kind) & mask_of(*SAMPLES)


@pytest.fixture(params=PROCESSORS)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    return Cpu.catalog(request.param)


def test_a_new_vso_holds_no_buffer_and_is_initial(cpu: Cpu) -> None:
    manager = Manager(cpu)
    vso = manager.create()
    assert (vso.size, vso.user_size, vso.xfeatures, vso.user_xfeatures, vso.in_use) == (0, 0, 0, 0, 0)
    assert vso.buffer is None
    assert vso.image().in_use == 0
    assert manager.statistics().bytes_held == 0


def test_a_vso_holds_just_the_components_that_it_uses(cpu: Cpu) -> None:
    manager = Manager(cpu)
    vso = manager.create()
    mask = 0
    for component in components_in(usable(manager)):
        mask |= 1 << component
        manager.load(vso, image_of(cpu, mask))
        assert vso.xfeatures == mask | LEGACY
        assert vso.size == manager.config.kernel_size(mask | LEGACY)
        assert vso.user_size == Layout.standard(cpu, mask | LEGACY).size
        assert manager.statistics().bytes_held == -(-vso.size // 64) * 64
    assert manager.statistics().growths == len(list(components_in(mask & ~LEGACY))) + 1


def test_growing_and_shrinking_keep_every_register(cpu: Cpu) -> None:
    manager, source = Manager(cpu), random.Random(cpu.name)
    vso = manager.create()
    for _ in range(60):
        mask = sum(1 << n for n in components_in(usable(manager)) if source.random() < 0.5)
        format = source.choice(list(Format))
        image = image_of(cpu, mask, format=format, room=usable(manager))
        manager.load(vso, image)
        assert vso.image() == image
        assert vso.in_use == mask
        manager.park(vso)
        assert vso.image() == image
        assert vso.xfeatures == (mask | LEGACY if mask else 0)


def test_a_state_comes_from_the_layout_of_another_processor() -> None:
    amd, intel = Cpu.catalog("zen4"), Cpu.catalog("skylake-x")
    assert Layout.standard(amd).offset(Component.OPMASK) != Layout.standard(intel).offset(Component.OPMASK)
    image = image_of(intel, 0b1110_0111, format=Format.STANDARD)
    vso = (manager := Manager(amd)).create()
    manager.load(vso, image)
    assert not differences(vso.image(), image)


def test_a_register_that_got_lost_would_be_seen() -> None:
    """The negative control: a manager that forgets one piece is caught by the comparison above."""

    class ForgetfulManager(Manager):
        def _pieces(self, source, target, in_use):
            return super()._pieces(source, target, in_use)[:-1]

    cpu = Cpu.catalog("zen4")
    image = image_of(cpu, LEGACY | AVX)
    for manager, lost in ((Manager(cpu), []), (ForgetfulManager(cpu), ["ymm3"])):
        vso = manager.create()
        manager.load(vso, image)
        assert [difference.register for difference in differences(vso.image(), image)] == lost


def test_an_initial_state_needs_no_buffer_again(cpu: Cpu) -> None:
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY))
    manager.load(vso, Image.initial(Layout.compacted(cpu, LEGACY)))
    assert (vso.buffer, vso.size, manager.statistics().bytes_held) == (None, 0, 0)


def test_parking_tells_how_many_bytes_it_gave_back() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY | AVX | ZMM))
    assert manager.park(vso) == 0
    assert vso.buffer is not None
    before = vso.size
    image = Image(vso.buffer.view, vso.layout, "vso")
    image.registers["zmm3h"] = 0
    assert manager.park(vso) == before - manager.config.kernel_size(LEGACY | AVX) > 0
    assert vso.image().registers["ymm3h"] == SAMPLES[Component.AVX][1]
    assert manager.statistics().parks == 1


def test_tile_data_is_held_by_those_that_use_it_alone() -> None:
    cpu = Cpu.catalog("sapphire-rapids")
    manager = Manager(cpu)
    before = manager.create()
    manager.request(Component.TILEDATA)
    vso, other = manager.create(), manager.create()
    assert before.max_size < 3000 < 10_000 < vso.max_size
    assert (vso.xfd, other.xfd) == (TILEDATA, TILEDATA)
    manager.load(vso, image_of(cpu, LEGACY | TILEDATA))
    assert (vso.xfd, other.xfd) == (0, TILEDATA)
    assert vso.size > 8192 > other.size == 0
    assert vso.image().registers["tmm2"] == 1 << 8000
    with pytest.raises(PermissionDenied):
        manager.load(before, image_of(cpu, LEGACY | TILEDATA))
    assert isinstance(vso.buffer, Buffer)
    Image(vso.buffer.view, vso.layout, "vso").registers["tmm2"] = 0
    assert manager.park(vso) > 8000
    assert (vso.xfd, vso.size) == (TILEDATA, 576)


def test_apx_registers_lie_where_mpx_did_and_are_kept() -> None:
    cpu = Cpu.catalog("diamond-rapids-model")
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY | APX, format=Format.STANDARD))
    assert vso.image().registers["r17"] == 0x1717
    assert vso.user_size == Layout.standard(cpu, LEGACY | APX).size


def test_attributes_mean_what_linux_means_by_them(cpu: Cpu) -> None:
    manager = Manager(cpu)
    host, guest = manager.create(), manager.create(Kind.GUEST)
    assert (host.is_guest, guest.is_guest) == (False, True)
    assert host.max_size == manager.config.kernel_default.size
    assert guest.max_size == manager.config.guest_default.size
    assert host.permitted == manager.config.kernel_default.features
    assert guest.permitted == manager.config.guest_default.features
    manager.load(host, image_of(cpu, usable(manager)))
    assert host.user_xfeatures == host.xfeatures & USER_SUPPORTED
    assert host.size == len(host.image().to_bytes()) == host.layout.size
    assert host.xfd == manager.config.init_xfd


@pytest.mark.parametrize("name", ["zen3", "tiger-lake"])
def test_guests_have_cet_s_by_default_and_hosts_do_not(name: str) -> None:
    manager = Manager(Cpu.catalog(name))
    host, guest = manager.create(), manager.create(Kind.GUEST)
    assert guest.permitted ^ host.permitted == CET_S
    assert guest.max_size - host.max_size == 24


def cet_s_image(cpu: Cpu) -> Image:
    image = Image.initial(Layout.compacted(cpu, LEGACY | CET_S))
    image.registers["pl0_ssp"] = 0xFFFF_8000_0000_0000
    return image


def test_a_guest_only_component_in_a_host_vso_warns_and_is_refused() -> None:
    cpu = Cpu.catalog("zen3")
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY))
    with pytest.warns(GuestOnlyComponentWarning, match="CET_S"), pytest.raises(GuestOnlyComponent) as error:
        manager.load(vso, cet_s_image(cpu))
    assert error.value.component == Component.CET_S
    assert vso.image() == image_of(cpu, LEGACY)
    with pytest.warns(GuestOnlyComponentWarning), pytest.raises(GuestOnlyComponent):
        manager.create(permitted=LEGACY | GUEST_SUPERVISOR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GuestOnlyComponent):
            manager.load(vso, cet_s_image(cpu))


def test_a_guest_vso_holds_a_guest_only_component() -> None:
    cpu = Cpu.catalog("zen3")
    manager = Manager(cpu)
    guest = manager.create(Kind.GUEST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.load(guest, cet_s_image(cpu))
    assert guest.image().registers["pl0_ssp"] == 0xFFFF_8000_0000_0000
    assert (guest.xfeatures, guest.user_xfeatures) == (LEGACY | CET_S, LEGACY)
    assert guest.user_size == 576 < guest.size


def test_guest_permission_freezes_with_the_first_guest() -> None:
    manager = Manager(Cpu.catalog("sapphire-rapids"))
    manager.create()
    manager.request(Component.TILEDATA, Kind.GUEST)
    late = Manager(Cpu.catalog("sapphire-rapids"))
    late.create(Kind.GUEST)
    with pytest.raises(PermissionFrozen):
        late.request(Component.TILEDATA, Kind.GUEST)
    late.request(Component.TILEDATA)
    assert manager.create(Kind.GUEST).permitted & TILEDATA
    assert not late.create(Kind.GUEST).permitted & TILEDATA


def test_a_refused_guest_does_not_freeze_guest_permission() -> None:
    manager = Manager(Cpu.catalog("sapphire-rapids"))
    with pytest.raises(PermissionDenied):
        manager.create(Kind.GUEST, permitted=LEGACY | TILEDATA)
    manager.request(Component.TILEDATA, Kind.GUEST)


def test_a_denial_keeps_the_state_and_harms_no_other() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    narrow, wide = manager.create(permitted=LEGACY), manager.create()
    manager.load(narrow, image_of(cpu, LEGACY))
    manager.load(wide, image_of(cpu, LEGACY | AVX))
    held = manager.statistics().bytes_held
    with pytest.raises(PermissionDenied) as error:
        manager.load(narrow, image_of(cpu, LEGACY | AVX))
    assert error.value.component == Component.AVX
    assert "X87|SSE" in str(error.value)
    assert narrow.image() == image_of(cpu, LEGACY)
    assert wide.image() == image_of(cpu, LEGACY | AVX)
    assert (manager.statistics().denials, manager.statistics().bytes_held) == (1, held)


def test_an_image_that_only_has_room_for_what_is_denied_is_loaded() -> None:
    """In use is what counts, not what a buffer has room for."""
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    vso = manager.create(permitted=LEGACY)
    manager.load(vso, image_of(cpu, LEGACY, room=AVX | ZMM))
    assert vso.xfeatures == LEGACY


def test_an_illegal_image_leaves_a_vso_as_it_was() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY))
    bad = image_of(cpu, LEGACY)
    bad.store.view[512:520] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(ImageError):
        manager.load(vso, bad)
    assert vso.image() == image_of(cpu, LEGACY)


class FailingPool(Pool):
    failure: Exception | None = None

    def take(self, size: int) -> Buffer:
        if self.failure:
            raise self.failure
        return super().take(size)


@pytest.mark.parametrize("failure", [PoolExhausted("none left"), MemoryError()])
def test_growth_without_memory_keeps_the_old_state(failure: Exception) -> None:
    cpu, pool = Cpu.catalog("zen4"), FailingPool()
    manager = Manager(cpu, pool=pool)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY))
    statistics = manager.statistics()
    pool.failure = failure
    with pytest.raises(type(failure)):
        manager.load(vso, image_of(cpu, LEGACY | AVX))
    assert vso.image() == image_of(cpu, LEGACY)
    assert manager.statistics() == statistics
    pool.failure = None
    manager.load(vso, image_of(cpu, LEGACY | AVX))
    assert vso.image() == image_of(cpu, LEGACY | AVX)


def test_a_copy_that_fails_gives_its_buffer_back_and_keeps_the_old_state() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    vso, image = manager.create(), image_of(cpu, LEGACY)
    manager.load(vso, image)
    held = manager.statistics().bytes_held

    def copy(view, moves):
        view[600:604] = b"LEAK"
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        manager.store(vso, LEGACY | AVX, Layout.compacted(cpu, LEGACY | AVX), copy)
    assert vso.image() == image
    assert manager.statistics().bytes_held == held
    assert not any(any(memory) for memory in manager.pool.free_memory())


def test_a_vso_is_freed_once() -> None:
    manager = Manager(Cpu.catalog("zen3"))
    vso = manager.create()
    manager.free(vso)
    for use in (manager.free, manager.park, manager.wipe):
        with pytest.raises(VsoError, match="freed"):
            use(vso)
    with pytest.raises(VsoError, match="freed"):
        vso.image()
    assert manager.vsos() == []


def test_a_vso_of_another_manager_is_refused() -> None:
    mine, other = Manager(Cpu.catalog("zen3")), Manager(Cpu.catalog("zen3"))
    vso = other.create()
    image = image_of(Cpu.catalog("zen3"), LEGACY)
    uses = (mine.free, mine.park, mine.wipe, lambda vso: mine.load(vso, image))
    for use in uses:
        with pytest.raises(VsoError, match="another manager"):
            use(vso)
    other.load(vso, image)
    assert vso.image() == image


SECRET = 0x5EC2E7_C0FFEE_5EC2E7_C0FFEE
SECRET_WORD = (SECRET & (1 << 64) - 1).to_bytes(8, "little")


def churn(manager: Manager, cpu: Cpu) -> None:
    """Grow, shrink, park, wipe and free VSOs full of a secret."""
    vsos = [manager.create() for _ in range(20)]
    for index, vso in enumerate(vsos):
        image = image_of(cpu, LEGACY | AVX)
        for name in ("xmm1", "ymm9h", "xmm15"):
            image.registers[name] = SECRET
        manager.load(vso, image)
        narrow = image_of(cpu, LEGACY)
        narrow.registers["xmm7"] = SECRET
        manager.load(vso, narrow)
        manager.load(vso, image)
        if index % 3 == 0:
            manager.wipe(vso)
        else:
            manager.free(vso)


def leftovers(manager: Manager) -> int:
    return sum(SECRET_WORD in bytes(memory) for memory in manager.pool.free_memory())


def test_every_byte_that_is_given_back_is_scrubbed() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    churn(manager, cpu)
    assert manager.statistics().bytes_held == 0
    assert sum(len(memory) for memory in manager.pool.free_memory()) > 0
    assert not any(any(memory) for memory in manager.pool.free_memory())


class CarelessPool(Pool):
    def _scrub_and_free(self, buffer: Buffer) -> None:
        buffer.slab.give(buffer.slot, scrub=False)


def test_a_pool_that_does_not_scrub_is_found_out() -> None:
    """The negative control of the test above."""
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu, pool=CarelessPool())
    churn(manager, cpu)
    assert leftovers(manager) > 0
    scrubbed = Manager(cpu)
    churn(scrubbed, cpu)
    assert leftovers(scrubbed) == 0


def test_statistics_add_up() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu)
    hosts, guests = [manager.create() for _ in range(3)], [manager.create(Kind.GUEST) for _ in range(2)]
    for vso in hosts:
        manager.load(vso, image_of(cpu, LEGACY))
    manager.load(hosts[0], image_of(cpu, LEGACY | AVX))
    manager.free(hosts[2])
    manager.count_switches(5, 7)
    found = manager.statistics()
    assert (found.contexts, found.created) == (4, 5)
    assert (found.saves, found.restores) == (5, 7)
    assert (found.growths, found.parks, found.denials) == (4, 0, 0)
    assert found.bytes_held == 832 + 576
    assert found.bytes_peak == 576 * 3 + 832
    assert found.static_bytes == sum(vso.max_size for vso in (*hosts[:2], *guests))
    assert manager.pool.bytes_mapped >= found.bytes_peak


def test_several_threads_may_use_one_manager() -> None:
    cpu = Cpu.catalog("zen4")
    manager, wrong = Manager(cpu), []

    def work(number: int) -> None:
        source = random.Random(number)
        for _ in range(40):
            vso = manager.create()
            for _ in range(4):
                mask = source.choice((0, LEGACY, LEGACY | AVX, LEGACY | AVX | ZMM))
                image = image_of(cpu, mask)
                if mask:
                    image.registers["xmm3"] = number + 1
                manager.load(vso, image)
                if vso.image() != image:
                    wrong.append(number)
            manager.free(vso)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    found = manager.statistics()
    assert (found.contexts, found.created, found.bytes_held) == (0, 240, 0)
    assert not any(any(memory) for memory in manager.pool.free_memory())


def test_a_policy_bounds_what_every_context_may_use() -> None:
    cpu = Cpu.catalog("zen4")
    manager = Manager(cpu, policy=LEGACY)
    vso = manager.create()
    assert (vso.permitted, vso.max_size) == (LEGACY, 576)
    with pytest.raises(PermissionDenied):
        manager.create(permitted=LEGACY | AVX)
    with pytest.raises(PermissionDenied):
        manager.load(vso, image_of(cpu, LEGACY | AVX))


def test_a_processor_without_xsavec_has_standard_buffers() -> None:
    cpu = Cpu.catalog("knights-landing")
    assert not cpu.has("XSAVEC")
    manager = Manager(cpu)
    vso = manager.create()
    manager.load(vso, image_of(cpu, LEGACY | ZMM))
    assert vso.layout.format is Format.STANDARD
    assert vso.size == Layout.standard(cpu, LEGACY | ZMM).size == vso.user_size
    assert vso.image().xcomp_bv == 0


def test_leftovers_of_an_absent_component_do_not_become_registers():
    """AVX present, SSE absent, and an MXCSR that makes SSE count as in use: XMM is initial all the same."""
    cpu = Cpu.catalog("zen3")
    manager, image = Manager(cpu), Image.initial(Layout.standard(cpu))
    image.registers["ymm5h"] = 7
    image.registers["mxcsr"] = 0x9F80
    view = image.store.view
    view[160:416] = b"\xa5" * 256
    view[512:520] = (1 << 2).to_bytes(8, "little")
    vso = manager.create()
    manager.load(vso, image)
    loaded = vso.image().registers
    assert (loaded["xmm5"], loaded["ymm5h"], loaded["mxcsr"]) == (0, 7, 0x9F80)


def test_a_vso_is_permitted_more_within_what_its_kind_is():
    manager = Manager(Cpu.catalog("sapphire-rapids"))
    host = manager.create()
    with pytest.raises(PermissionDenied):
        manager.permit(host, TILEDATA)
    manager.request(Component.TILEDATA)
    manager.permit(host, TILEDATA)
    assert host.permitted & TILEDATA
    assert not manager.create(Kind.GUEST).permitted & TILEDATA


def test_guest_only_components_are_not_permitted_to_a_host_later_either():
    manager = Manager(Cpu.catalog("zen4"))
    host, guest = manager.create(), manager.create(Kind.GUEST, permitted=LEGACY)
    with pytest.warns(GuestOnlyComponentWarning), pytest.raises(GuestOnlyComponent):
        manager.permit(host, CET_S)
    assert not host.permitted & CET_S
    manager.permit(guest, CET_S)
    assert guest.permitted == LEGACY | CET_S
