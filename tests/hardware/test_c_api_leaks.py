"""The functions of the C interface keep no memory, where they refuse as well."""

import ctypes
import errno

import pytest
from test_core_leaks import ALLOWED_BYTES, ALLOWED_COUNT, growth

from c_table import Control, Storage, created, created_in, table_of

KEPT_BYTES = 2 << 20
"""What 1000 contexts of the library that are never destroyed take at least, in address space."""


def refused(code):
    assert code == errno.EINVAL


def deeds(core):
    table = table_of(core)
    storage, other_storage = Storage(table), Storage(table)
    home, away = created(table), created(table)
    here, there = created_in(table, storage), created_in(table, other_storage)
    words, other_words = Control(), Control(mxcsr=0x1F80, fcw=0x37F)
    reserved = Control(mxcsr=0xFFFF1F80, fcw=0x37F)
    scratch, place = Storage(table), ctypes.c_void_p()

    def back(deed):
        """The thread's registers are as before, whatever the deed loads."""
        table.save(home)
        deed()
        table.restore(home)

    return {
        "core": lambda: (table.core(), table.core_reason(), table.context_size(), table.context_alignment()),
        "create": lambda: table.destroy(created(table)),
        "create refused": lambda: refused(table.create(None)),
        "create a used one": lambda: _use(table, created(table)),
        "create_in": lambda: table.destroy(created_in(table, scratch)),
        "create_in a used one": lambda: _use(table, created_in(table, scratch)),
        "create_in refused": lambda: refused(table.create_in(scratch.address + 1, 5, ctypes.byref(place))),
        "destroy nothing": lambda: table.destroy(None),
        "save": lambda: (table.save(away), table.save(there)),
        "save refused": lambda: refused(table.save(None)),
        "restore": lambda: back(lambda: (table.restore(away), table.restore(there))),
        "restore refused": lambda: refused(table.restore(None)),
        "switch": lambda: (table.switch_state(home, away), table.switch_state(away, home)),
        "switch in place": lambda: (table.switch_state(here, there), table.switch_state(there, here)),
        "switch of both kinds": lambda: (table.switch_state(home, there), table.switch_state(there, home)),
        "switch to a parked one": lambda: (
            table.park(away),
            table.switch_state(home, away),
            table.switch_state(away, home),
        ),
        "switch refused": lambda: refused(table.switch_state(home, None)),
        "switch_control": lambda: (
            table.switch_control(words, other_words),
            table.switch_control(other_words, words),
        ),
        "switch_control refused": lambda: refused(table.switch_control(words, reserved)),
        "prefetch": lambda: (table.prefetch(away), table.prefetch(there), table.prefetch(None)),
        "park": lambda: (table.save(away), table.park(away), table.park(away), table.park(there)),
        "park refused": lambda: refused(table.park(None)),
    }


def _use(table, context):
    table.save(context)
    table.park(context)
    table.destroy(context)


NAMES = (
    *("core", "create", "create refused", "create a used one", "create_in", "create_in a used one"),
    *("create_in refused", "destroy nothing", "save", "save refused", "restore", "restore refused", "switch"),
    *(
        "switch in place",
        "switch of both kinds",
        "switch to a parked one",
        "switch refused",
        "switch_control",
    ),
    *("switch_control refused", "prefetch", "park", "park refused"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_the_c_interface_leaks_nothing(core, name):
    memory, maps, blocks = growth(deeds(core)[name])
    assert memory < ALLOWED_BYTES
    assert maps < ALLOWED_COUNT
    assert blocks < ALLOWED_COUNT


def test_every_name_is_tried(core):
    assert set(NAMES) == set(deeds(core))


def test_a_context_that_is_never_destroyed_would_be_seen(core):
    """The negative control: what is created and saved to, and not destroyed, shows."""
    table, kept = table_of(core), []

    def keep():
        context = created(table)
        table.save(context)
        kept.append(context)

    assert growth(keep)[0] > KEPT_BYTES
    for context in kept:
        table.destroy(context)
