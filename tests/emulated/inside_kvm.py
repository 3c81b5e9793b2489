"""Runs in the emulated machine: the tests that drive KVM, on a KVM with hardware virtualization and rules of its own.

Exits with pytest's code. FPSTATE_TESTS (comma-separated) chooses others than those of TESTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path("/tests")
TESTS = ("vm/test_*.py", "hardware/test_oracle_kvm.py", "hardware/test_kvm_*.py", "integration/test_kvm_*.py")
SHARE = 10
"""Random tests try one in so many of what they try elsewhere: an emulated processor takes its time."""
TEST_SECONDS = 120


def chosen() -> list[str]:
    """Return the tests asked for, or every file that drives KVM."""
    if asked := os.environ.get("FPSTATE_TESTS"):
        return asked.split(",")
    return [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]


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
