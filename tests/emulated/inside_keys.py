"""Runs in the emulated machine: the native guests that close protection keys, on a kernel that lets them.

Exits with pytest's code, and with 1 where a test was skipped for want of keys. FPSTATE_TESTS chooses others.
"""

from __future__ import annotations

import os
import subprocess
import sys

from fpstate import _core

TESTS = (
    "integration/test_hostile_guests.py::test_every_guest_that_changes_its_keys_ends_as_its_own_end",
    "integration/test_hostile_guests.py::test_without_the_frame_s_pkru_the_process_is_lost",
    "integration/test_hostile_guests.py::test_with_restartable_sequences_a_closed_key_is_not_the_guest_s_alone",
    "integration/test_protection_keys.py::test_a_program_finds_linux_s_default_natively[standard]",
    "integration/test_protection_keys.py::test_a_changed_pkru_is_named[standard]",
    "integration/test_protection_keys.py::test_nothing_of_pkru_leaks[portable]",
)
TEST_SECONDS = 120


def main() -> int:
    """Run the tests; a machine without protection keys is a failure, as it would skip them all."""
    if not _core.features()["pkru"]:
        print("the kernel of the emulated machine has protection keys off")
        return 1
    chosen = os.environ["FPSTATE_TESTS"].split(",") if "FPSTATE_TESTS" in os.environ else list(TESTS)
    options = ["-v", "-ra", "--color=no", "--tb=short", "--durations=5", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--rootdir=.", f"--timeout={TEST_SECONDS}", *options, *chosen]
    environment = {"FPSTATE_HOSTILE": "/tests/hostile", **os.environ}
    return subprocess.run(command, check=False, cwd="/tests", env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
