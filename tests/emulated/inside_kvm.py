"""Runs in the emulated machine: the tests that drive KVM, on a KVM with hardware virtualization and rules of its own.

Exits with pytest's code. FPSTATE_TESTS (comma-separated) chooses others than those of TESTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/tests")
TESTS = ("vm/test_*.py", "hardware/test_oracle_kvm.py", "hardware/test_kvm_*.py")
ENGINE = "integration/test_kvm_engine.py"
ENGINE_TESTS = (
    "test_every_program_leaves_the_bytes_that_it_leaves_natively[canary-shared]",
    "test_every_program_leaves_the_bytes_that_it_leaves_natively[canary-one each]",
    "test_every_program_leaves_the_bytes_that_it_leaves_natively[sse_nbody-shared]",
    "test_fewer_or_more_kvm_vcpus_than_host_threads_change_no_result[3]",
    "test_without_synced_registers_the_ioctls_do",
    "test_kvm_vcpus_of_guests_that_ended_carry_others",
    "test_a_guest_moves_between_queues_and_kvm_vcpus",
    "test_guests_that_use_no_floating_point_hold_nothing",
    "test_programs_are_told_what_they_may_use",
    "test_a_guest_that_uses_what_it_may_not_is_denied_and_the_others_go_on",
)
"""Not all of them: an emulated entry into a guest takes long, and QEMU 7.2 rounds x87 in single precision wrongly."""
FAULTS = (
    "integration/test_kvm_engine_faults.py::test_the_report_is_the_native_one",
    "integration/test_kvm_engine_faults.py::test_a_system_call_reaches_nobody",
    "integration/test_kvm_engine_faults.py::test_a_breakpoint_is_not_lost_to_a_tick",
)
KEYS = (
    "integration/test_protection_keys.py::test_a_program_finds_linux_s_default_natively",
    "integration/test_protection_keys.py::test_a_program_finds_the_same_in_a_guest",
    "integration/test_protection_keys.py::test_a_changed_pkru_is_named",
    "integration/test_protection_keys.py::test_nothing_of_pkru_leaks_between_guests",
    "integration/test_protection_keys.py::test_a_load_that_gives_a_guest_another_s_pkru_is_caught",
    "integration/test_protection_keys.py::test_a_program_that_writes_pkru_is_denied_by_neither_engine",
)
"""QEMU's processor has protection keys, which few machines that run the tests have."""
SHARE = 20
"""Random tests try one in so many of what they try elsewhere."""
TEST_SECONDS = 120


def chosen() -> list[str]:
    """Return the tests asked for, or every file that drives KVM."""
    if asked := os.environ.get("FPSTATE_TESTS"):
        return asked.split(",")
    files = [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    return [*files, *(f"{ENGINE}::{name}" for name in ENGINE_TESTS), *FAULTS, *KEYS]


def main() -> int:
    """Run the tests; a machine without KVM is a failure, as it would skip them all."""
    if not Path("/dev/kvm").exists():
        print("KVM did not load in the emulated machine")
        return 1
    options = ["-v", "-ra", "--color=no", "--tb=short", "--durations=5", "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--rootdir=.",
        f"--timeout={TEST_SECONDS}",
        *options,
        *chosen(),
    ]
    environment = {"FPSTATE_SHARE": str(SHARE), **os.environ}
    return subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
