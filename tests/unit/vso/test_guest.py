"""Guest states are swapped, sized, held back by XFD, exported and imported as Linux and KVM do it."""

import warnings
from dataclasses import replace

import pytest
from image_registers import ImageRegisters

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY
from fpstate.errors import (
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    ImageError,
    PermissionDenied,
    PermissionFrozen,
    RestoreFault,
    UnsupportedComponent,
    VsoError,
)
from fpstate.image import Image
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.guest import UABI_MINIMUM, GuestFpu
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.task import TaskFpu

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

TILEDATA, TILECFG, CET_S, CET_U, PKRU, AVX, MPX = (
    mask_of(component)
    for component in (
        *(Component.TILEDATA, Component.TILECFG, Component.CET_S, Component.CET_U, Component.PKRU),
        *(Component.AVX, Component.BNDREGS),
    )
)
SECRET = {"xmm3": 0x1111_2222_3333_4444, "ymm3h": 0x5555_6666_7777_8888, "st0": 0x4000_C90F_DAA2_2168_C235}
OWN = {"xmm3": 0xAAAA_BBBB_CCCC_DDDD, "k1": 0x1234_5678_9ABC_DEF0, "mxcsr": 0x1FA0}


def spr(*, amx: bool = False) -> Manager:
    manager = Manager(Cpu.catalog("sapphire-rapids"))
    if amx:
        manager.request(Component.TILEDATA, Kind.GUEST)
    return manager


class Machine:
    """A task and a guest on one processor."""

    def __init__(self, manager: Manager, *, confidential: bool = False) -> None:
        self.task = TaskFpu(manager)
        self.guest = GuestFpu(manager, confidential=confidential)
        self.processor = ImageRegisters(manager.config)
        self.task.load(self.processor)

    def write(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            self.processor.image.registers[name] = value

    def read(self) -> dict[str, int]:
        return self.processor.image.registers.in_use()

    def enter(self) -> None:
        self.task.swap(self.guest, self.processor, enter=True)

    def leave(self) -> None:
        self.task.swap(self.guest, self.processor, enter=False)


def in_use(image: Image) -> dict[str, int]:
    return image.registers.in_use()


@pytest.fixture
def machine() -> Machine:
    return Machine(spr())


class TestSwap:
    def test_host_and_guest_have_their_own_registers_there_and_back(self, machine):
        machine.write(OWN)
        own = machine.read()
        machine.enter()
        assert machine.read() == {}
        machine.write(SECRET)
        secret = machine.read()
        machine.leave()
        assert machine.read() == own
        machine.enter()
        assert machine.read() == secret

    def test_a_restore_that_leaves_absent_components_would_be_seen(self, machine, monkeypatch):
        def sloppy(self, processor):
            image = self.vso.image()
            processor.restore(image, image.xstate_bv)
            self.loaded_on = processor

        monkeypatch.setattr(Fpstate, "restore", sloppy)
        machine.write(OWN)
        machine.enter()
        assert machine.read()["k1"] == OWN["k1"]

    def test_the_host_is_parked_while_the_guest_is_in_use(self, machine):
        own, guest = machine.task.fpstate, machine.guest.fpstate
        assert (machine.task.task_fpstate, machine.guest.in_use) == (None, False)
        machine.enter()
        assert (machine.task.fpstate, machine.task.task_fpstate) == (guest, own)
        assert (machine.guest.in_use, machine.task.guest_active) == (True, True)
        assert (own.loaded_on, guest.loaded_on) == (None, machine.processor)
        machine.leave()
        assert (machine.task.fpstate, machine.task.task_fpstate) == (own, None)
        assert (machine.guest.in_use, machine.task.guest_active) == (False, False)
        assert (own.loaded_on, guest.loaded_on) == (machine.processor, None)

    def test_restores_cover_everything_but_pkru_whatever_the_state_may_hold(self, machine):
        machine.enter()
        machine.leave()
        everything = machine.task.manager.config.kernel_max.features & ~PKRU
        assert machine.processor.restores == [everything] * 3
        assert everything & TILEDATA
        assert not machine.task.fpstate.xfeatures & TILEDATA

    def test_pkru_passes_through(self, machine):
        machine.write({"pkru": INIT_PKRU})
        machine.enter()
        assert machine.read() == {"pkru": INIT_PKRU}

    def test_registers_that_are_not_live_are_not_saved(self, machine):
        machine.write(OWN)
        own = machine.read()
        machine.task.save(machine.processor)
        machine.write(SECRET)
        machine.enter()
        machine.leave()
        assert machine.read() == own

    def test_xfd_goes_with_the_state(self, machine):
        assert machine.processor.xfd == TILEDATA
        machine.enter()
        assert machine.processor.xfd == 0
        machine.leave()
        assert machine.processor.xfd == TILEDATA

    def test_a_second_guest_and_a_second_entry_are_refused(self, machine):
        machine.enter()
        with pytest.raises(VsoError, match="already"):
            machine.enter()
        other = Machine(machine.task.manager)
        with pytest.raises(VsoError, match="already"):
            other.task.swap(machine.guest, other.processor, enter=True)
        with pytest.raises(VsoError, match="not swapped in here"):
            other.task.swap(machine.guest, other.processor, enter=False)
        machine.leave()
        with pytest.raises(VsoError, match="not swapped in here"):
            machine.leave()

    def test_nothing_is_freed_while_it_is_in_use(self, machine):
        machine.enter()
        with pytest.raises(VsoError):
            machine.guest.free()
        with pytest.raises(VsoError):
            machine.task.free()
        machine.leave()
        machine.guest.free()
        with pytest.raises(VsoError, match="freed"):
            machine.guest.free()

    def test_what_both_held_is_scrubbed_when_they_are_freed(self, machine):
        machine.write(OWN)
        machine.enter()
        machine.write(SECRET)
        machine.leave()
        machine.task.save(machine.processor)
        pool = machine.task.manager.pool
        assert pool.bytes_held > 0
        machine.guest.free()
        machine.task.free()
        assert pool.bytes_held == 0
        assert not any(any(free) for free in pool.free_memory())


class TestConfidential:
    def test_neither_saved_nor_restored_but_xfd_is_set(self):
        machine = Machine(spr(), confidential=True)
        machine.write(OWN)
        own = machine.read()
        machine.enter()
        assert (machine.read(), machine.processor.xfd) == (own, 0)
        machine.write(SECRET)
        machine.leave()
        assert machine.read() == own
        assert machine.guest.fpstate.vso.size == 0

    def test_one_that_is_not_is_saved(self):
        machine = Machine(spr())
        machine.enter()
        machine.write(SECRET)
        machine.leave()
        assert machine.guest.fpstate.vso.size > 0

    def test_it_cannot_be_exported_or_imported(self):
        guest = Machine(spr(), confidential=True).guest
        with pytest.raises(VsoError, match="confidential"):
            guest.export()
        with pytest.raises(VsoError, match="confidential"):
            guest.import_(bytes(4096))


class TestSupervisorState:
    def test_shadow_stacks_of_the_guest_kernel_are_kept_in_the_guest(self, machine):
        machine.enter()
        machine.write({"pl0_ssp": 0x7000_0000_1000, "pl3_ssp": 0x7000_0000_2000})
        machine.leave()
        assert machine.read() == {}
        assert in_use(machine.guest.fpstate.vso.image()) == {
            "pl0_ssp": 0x7000_0000_1000,
            "pl3_ssp": 0x7000_0000_2000,
        }

    def test_in_a_host_they_warn_and_are_refused(self, machine):
        machine.write({"pl0_ssp": 0x7000_0000_1000})
        with pytest.warns(GuestOnlyComponentWarning, match="CET_S"), pytest.raises(GuestOnlyComponent):
            machine.task.save(machine.processor)

    def test_those_that_hosts_have_do_not_warn(self, machine):
        machine.write({"pl3_ssp": 0x7000_0000_2000})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            machine.task.save(machine.processor)


class TestXfd:
    def with_tiles(self) -> Machine:
        machine = Machine(spr(amx=True))
        machine.guest.enable_features(TILEDATA)
        machine.enter()
        machine.write({"tmm0": 1 << 4000, "tilecfg": 1, "xmm1": 7})
        machine.leave()
        return machine

    def test_a_disabled_component_is_never_in_the_saved_state(self):
        machine = self.with_tiles()
        image = machine.guest.fpstate.vso.image()
        assert image.xstate_bv & TILEDATA
        machine.guest.update_xfd(TILEDATA)
        image = machine.guest.fpstate.vso.image()
        assert image.xstate_bv & (TILEDATA | TILECFG | LEGACY) == TILECFG | mask_of(Component.SSE)
        machine.enter()
        assert (machine.read(), machine.processor.xfd) == ({"tilecfg": 1, "zmm1": 7}, TILEDATA)

    def test_without_that_the_restore_would_fault_in_the_host(self):
        machine = self.with_tiles()
        machine.guest.fpstate.xfd = TILEDATA
        with pytest.raises(RestoreFault, match="#NM"):
            machine.enter()

    def test_a_write_while_the_registers_are_live_reaches_the_processor(self):
        machine = self.with_tiles()
        machine.enter()
        machine.guest.update_xfd(TILEDATA)
        assert machine.processor.xfd == TILEDATA
        assert "tmm0" in machine.read()
        machine.leave()
        assert not machine.guest.fpstate.vso.image().xstate_bv & TILEDATA
        machine.guest.update_xfd(0)
        machine.enter()
        assert machine.read() == {"tilecfg": 1, "zmm1": 7}

    def test_what_the_guest_wrote_itself_is_read_back(self):
        machine = self.with_tiles()
        machine.enter()
        machine.processor.xfd = TILEDATA
        assert machine.guest.xfd == 0
        machine.guest.sync_xfd(machine.processor)
        machine.leave()
        assert machine.guest.xfd == TILEDATA

    @pytest.mark.parametrize("bits", [TILEDATA, AVX, TILECFG, 1 << 63])
    def test_bits_that_the_guest_lacks_are_refused(self, machine, bits):
        with pytest.raises(UnsupportedComponent, match="XFD"):
            machine.guest.update_xfd(bits)
        assert machine.guest.xfd == 0

    def test_a_confidential_state_has_nothing_to_drop(self):
        manager = spr(amx=True)
        guest = GuestFpu(manager, confidential=True)
        guest.enable_features(TILEDATA)
        guest.update_xfd(TILEDATA)
        assert guest.xfd == TILEDATA


class TestFeaturesAndSizes:
    def test_a_guest_starts_with_the_guest_default_and_xfd_clear(self):
        guest = GuestFpu(spr())
        assert guest.xfeatures == guest.fpstate.xfeatures == spr().config.guest_default.features
        assert guest.xfeatures & CET_S
        assert (guest.fpstate.size, guest.fpstate.user_size) == (2560, 2816)
        assert (guest.uabi_size, guest.xfd, guest.xfd_err) == (UABI_MINIMUM, 0, 0)

    def test_enabling_grows_the_sizes_and_nothing_else(self):
        guest = GuestFpu(spr(amx=True))
        before = guest.xfeatures
        guest.enable_features(TILEDATA)
        assert guest.xfeatures == guest.fpstate.xfeatures == before | TILEDATA
        assert (guest.fpstate.size, guest.fpstate.user_size, guest.uabi_size) == (10752, 11008, 11008)
        assert guest.fpstate.vso.size == 0

    def test_what_is_enabled_already_is_nothing_to_do(self):
        guest = GuestFpu(spr())
        guest.enable_features(guest.xfeatures)
        assert guest.uabi_size == UABI_MINIMUM

    def test_without_permission_it_is_denied_and_nothing_changes(self):
        guest = GuestFpu(spr())
        with pytest.raises(PermissionDenied):
            guest.enable_features(TILEDATA)
        assert not guest.xfeatures & TILEDATA
        assert guest.uabi_size == UABI_MINIMUM

    def test_permission_has_to_come_before_the_first_guest(self):
        manager = spr()
        GuestFpu(manager)
        with pytest.raises(PermissionFrozen):
            manager.request(Component.TILEDATA, Kind.GUEST)

    def test_permission_of_the_host_is_not_that_of_the_guest(self):
        manager = spr()
        manager.request(Component.TILEDATA, Kind.HOST)
        with pytest.raises(PermissionDenied):
            GuestFpu(manager).enable_features(TILEDATA)

    def test_growth_while_swapped_in_keeps_the_registers(self):
        machine = Machine(spr(amx=True))
        machine.enter()
        machine.write(SECRET)
        secret = machine.read()
        machine.guest.enable_features(TILEDATA)
        machine.write({"tmm7": 3})
        machine.leave()
        machine.enter()
        assert machine.read() == secret | {"tmm7": 3}
        assert machine.guest.in_use

    def test_a_host_task_is_enabled_for_what_its_process_was_granted(self):
        manager = spr()
        task = TaskFpu(manager)
        with pytest.raises(PermissionDenied):
            task.enable(TILEDATA)
        manager.request(Component.TILEDATA)
        task.enable(TILEDATA)
        assert (task.fpstate.xfd, task.fpstate.xfeatures & TILEDATA) == (0, TILEDATA)
        with pytest.raises(PermissionDenied, match="not permitted"):
            TaskFpu(manager, permitted=LEGACY).enable(TILEDATA)


class TestExport:
    def filled(self) -> GuestFpu:
        machine = Machine(spr())
        machine.enter()
        machine.write(SECRET | {"mxcsr": 0x1F81, "k2": 9, "pl0_ssp": 0x1000, "zmm20": 1 << 500})
        machine.leave()
        return machine.guest

    def test_it_has_the_user_components_in_the_standard_format_and_zeros_behind_them(self):
        guest = self.filled()
        guest.pkru = 0x30
        data = guest.export()
        layout = Layout.standard(guest.manager.config.cpu, guest.user_xfeatures)
        image = Image(data[: layout.size], layout)
        written = SECRET | {"mxcsr": 0x1F81, "k2": 9, "pkru": 0x30, "zmm20": 1 << 500}
        assert {name: image.registers[name] for name in written} == written
        assert set(in_use(image)) == {*written, "ftag_abridged", "zmm3"} - {"xmm3", "ymm3h"}
        assert (len(data), any(data[layout.size :])) == (UABI_MINIMUM, False)
        assert image.xcomp_bv == 0
        assert data[464:472] == (0x602E7).to_bytes(8, "little")
        assert data[28:32] == guest.manager.config.cpu.mxcsr_mask.to_bytes(4, "little")

    def test_absent_components_are_zeros_and_control_words(self):
        guest = GuestFpu(spr())
        data = bytearray(guest.export())
        assert (data[0:2], data[24:28]) == ((0x37F).to_bytes(2, "little"), (0x1F80).to_bytes(4, "little"))
        assert int.from_bytes(data[512:520], "little") == mask_of(Component.PKRU)
        for start, end in ((0, 2), (24, 32), (464, 472), (512, 520)):
            data[start:end] = bytes(end - start)
        assert not any(data)

    def test_features_narrow_it_but_x87_and_sse_stay(self):
        guest = self.filled()
        layout = Layout.standard(guest.manager.config.cpu, LEGACY)
        data = guest.export(features=0)
        assert set(in_use(Image(data[: layout.size], layout))) >= {"xmm3", "mxcsr", "st0"}
        assert not any(data[576:])

    def test_it_is_never_cut_short(self):
        guest = GuestFpu(spr(amx=True))
        guest.enable_features(TILEDATA)
        with pytest.raises(ImageError, match="nothing is cut off") as caught:
            guest.export(UABI_MINIMUM)
        assert (caught.value.found, caught.value.expected) == (4096, 11008)
        assert len(guest.export()) == 11008

    def test_it_goes_in_again(self):
        source, target = self.filled(), GuestFpu(spr())
        target.import_(source.export())
        assert target.export() == source.export()
        assert "pl0_ssp" not in in_use(target.fpstate.vso.image())
        assert "pl0_ssp" in in_use(source.fpstate.vso.image())

    def test_not_while_it_is_swapped_in(self, machine):
        machine.enter()
        with pytest.raises(VsoError, match="swapped out"):
            machine.guest.export()
        with pytest.raises(VsoError, match="swapped out"):
            machine.guest.import_(bytes(4096))

    def test_without_xsave_it_can_be_loaded_where_there_is_xsave(self):
        cpu = Cpu.catalog("haswell")
        old = replace(cpu, xcr0=0, xss=0, features=cpu.features - {"XSAVE", "XSAVEOPT"}, geometry={})
        guest = GuestFpu(Manager(old))
        data = guest.export()
        assert data[512:520] == (3).to_bytes(8, "little")
        GuestFpu(Manager(cpu)).import_(data)
        guest.import_(data)
        wider = data[:512] + (7).to_bytes(8, "little") + data[520:]
        with pytest.raises(ImageError):
            guest.import_(wider)


class TestImport:
    def image(self, values: dict[str, int], *, mask: int = 0x602E7) -> bytearray:
        image = Image.initial(Layout.standard(Cpu.catalog("sapphire-rapids"), mask))
        for name, value in values.items():
            image.registers[name] = value
        return bytearray(image.to_bytes().ljust(UABI_MINIMUM, b"\0"))

    def test_supervisor_components_stay(self):
        machine = Machine(spr())
        machine.enter()
        machine.write({"pl0_ssp": 0x1000, "xmm1": 5})
        machine.leave()
        machine.guest.import_(self.image({"xmm2": 6}))
        assert in_use(machine.guest.fpstate.vso.image()) == {"pl0_ssp": 0x1000, "xmm2": 6}

    def test_pkru_is_kept_where_it_is_absent_and_taken_where_it_is_there(self):
        guest = GuestFpu(spr())
        guest.pkru = 0x55
        guest.import_(self.image({"xmm2": 6}))
        assert guest.pkru == 0x55
        guest.import_(self.image({"pkru": 0x33}))
        assert guest.pkru == 0x33
        present_and_zero = self.image({"pkru": 1})
        present_and_zero[2688:2692] = bytes(4)
        guest.import_(present_and_zero)
        assert guest.pkru == 0

    def test_a_pkru_of_0_is_exported_and_so_replaces_another(self):
        """I11: absent would mean kept, and an export that lacks it would open or close the wrong keys."""
        exporter, importer = GuestFpu(spr()), GuestFpu(spr())
        importer.pkru = 0x30
        importer.import_(exporter.export())
        assert importer.pkru == 0

    def test_no_other_component_is_kept(self):
        guest = GuestFpu(spr())
        guest.import_(self.image({"xmm2": 6, "k1": 5}))
        guest.import_(self.image({"k1": 4}))
        assert in_use(guest.fpstate.vso.image()) == {"k1": 4}

    def test_components_beyond_what_is_supplied_are_refused_and_nothing_changes(self):
        guest = GuestFpu(spr())
        guest.import_(self.image({"xmm2": 6}))
        data = self.image({"k1": 5})
        with pytest.raises(ImageError) as caught:
            guest.import_(data, xcr0=0x7)
        assert caught.value.offset == 512
        assert in_use(guest.fpstate.vso.image()) == {"xmm2": 6}
        guest.import_(data, xcr0=0xE7)

    @pytest.mark.parametrize(
        ("offset", "value"), [(520, 1), (527, 0x80), (528, 1), (575, 1), (512, 0x80), (26, 1)]
    )
    def test_headers_and_an_mxcsr_that_kvm_refuses_are_refused(self, offset, value):
        guest = GuestFpu(spr())
        data = self.image({"xmm2": 6})
        guest.import_(data)
        data[offset if offset != 512 else 514] = value
        with pytest.raises(ImageError) as caught:
            guest.import_(data)
        assert caught.value.offset is not None
        assert in_use(guest.fpstate.vso.image()) == {"xmm2": 6}

    def test_short_data_is_refused(self):
        with pytest.raises(ImageError):
            GuestFpu(spr()).import_(self.image({})[:2000])

    def test_disabled_components_are_refused_or_left_out(self):
        guest = GuestFpu(spr(amx=True))
        guest.enable_features(TILEDATA)
        guest.update_xfd(TILEDATA)
        data = self.image({"tmm1": 1, "xmm1": 2}).ljust(11008, b"\0")
        with pytest.raises(ImageError, match="IA32_XFD") as caught:
            guest.import_(data)
        assert (caught.value.offset, caught.value.found & TILEDATA) == (512, TILEDATA)
        assert guest.fpstate.vso.size == 0
        assert guest.import_(data, mask_disabled=True) == TILEDATA
        assert in_use(guest.fpstate.vso.image()) == {"xmm1": 2}
        guest.update_xfd(0)
        assert guest.import_(data) == 0
        assert in_use(guest.fpstate.vso.image()) == {"xmm1": 2, "tmm1": 1}

    def test_an_mxcsr_that_avx_alone_carries_is_not_lost(self):
        guest = GuestFpu(spr())
        data = self.image({"ymm1h": 7})
        data[24:28] = (0x1F81).to_bytes(4, "little")
        guest.import_(data)
        assert in_use(guest.fpstate.vso.image())["mxcsr"] == 0x1F81

    @pytest.mark.parametrize("name", ["bulldozer", "haswell", "zen4"])
    @pytest.mark.parametrize("stated", [AVX, AVX | 1])
    def test_nor_is_it_where_the_kernel_has_the_standard_format(self, name, stated):
        """I11: buffers get MXCSR with SSE, and so SSE has to be stated."""
        guest = GuestFpu(Manager(Cpu.catalog(name)))
        data = bytearray(guest.export())
        data[24:28], data[512:520] = (0x1FA0).to_bytes(4, "little"), stated.to_bytes(8, "little")
        guest.import_(data)
        assert guest.fpstate.vso.image().registers["mxcsr"] == 0x1FA0

    def test_a_component_is_cleared_as_init_does(self):
        manager = Manager(Cpu.catalog("skylake-sp"))
        guest = GuestFpu(manager)
        image = Image.initial(Layout.standard(manager.config.cpu, 0x2FF))
        image.registers["bnd0"], image.registers["xmm0"] = 5, 6
        guest.import_(image.to_bytes().ljust(UABI_MINIMUM, b"\0"))
        guest.clear_component(Component.BNDREGS)
        assert in_use(guest.fpstate.vso.image()) == {"xmm0": 6}
