"""Requests for components fail as the running kernel's arch_prctl does."""

import os
import subprocess
import sys

import pytest

from fpstate.arch import Cpu
from fpstate.errors import PermissionRequestError
from fpstate.vso.config import FpuConfig
from fpstate.vso.kernel_permission import (
    read_kernel_permission,
    request_from_kernel,
    shadow_stack_active,
)
from fpstate.vso.permission import Kind, Permissions

ASK = """
import fcntl, os, sys
from fpstate.vso.kernel_permission import read_kernel_permission, request_from_kernel
from fpstate.vso.permission import Kind
mask, vcpu_first = int(sys.argv[1]), sys.argv[2] == "frozen"
if vcpu_first:
    vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
    fcntl.ioctl(vm, 0xAE41, 0)
request_from_kernel(mask, Kind.GUEST)
assert read_kernel_permission().guest & mask == mask
"""


ASK_FOR_THIS_PROCESS = """
import sys
from fpstate.arch import Cpu
from fpstate.arch.component import components_in
from fpstate.vso.config import FpuConfig
from fpstate.vso.kernel_permission import read_kernel_permission, request_from_kernel
from fpstate.vso.permission import Kind, Permissions
mask, permissions = int(sys.argv[1]), Permissions(FpuConfig.from_cpu(Cpu.host()))
assert read_kernel_permission().host & mask == 0
for again in range(2):
    request_from_kernel(mask, Kind.HOST)
    for component in components_in(mask):
        permissions.request(component, Kind.HOST)
    assert read_kernel_permission().host == permissions.user_mask(Kind.HOST)
"""


def dynamic() -> int:
    return FpuConfig.from_cpu(Cpu.host()).init_xfd


def refusal(request, argument) -> str | None:
    try:
        request(argument)
    except PermissionRequestError as error:
        return error.errno_name
    return None


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("component", range(63))
def test_a_request_is_answered_as_the_kernel_answers_it(component, kind):
    kernel = read_kernel_permission()
    if (kernel.host if kind is Kind.HOST else kernel.guest) is None:
        pytest.skip("ARCH_GET_XCOMP_PERM (Linux 5.16) or ARCH_GET_XCOMP_GUEST_PERM (5.17)")
    if dynamic() >> component & 1:
        pytest.skip(
            "asked for in a process of its own, below: what is granted stays, to every test that follows"
        )
    ours = refusal(
        lambda number: Permissions(FpuConfig.from_cpu(Cpu.host())).request(number, kind), component
    )
    kernels = refusal(lambda mask: request_from_kernel(mask, kind), 1 << component)
    if component == 19 and kernels == "EINVAL":
        pytest.skip("a kernel that knows APX (Linux 6.16)")
    assert ours == kernels


def test_host_permission_is_granted_to_the_process_that_asks_and_to_no_other():
    if not dynamic():
        pytest.skip("a processor with components that are given on request (XFD: AMX)")
    before = read_kernel_permission().host
    command = [sys.executable, "-c", ASK_FOR_THIS_PROCESS, str(dynamic())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert read_kernel_permission().host == before


@pytest.mark.parametrize("order", ["open", "frozen"])
def test_guest_permission_is_granted_before_the_first_vcpu_and_refused_after_it(order):
    if not dynamic():
        pytest.skip("a processor with components that are given on request (XFD: AMX)")
    if order == "frozen" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm")
    command = [sys.executable, "-c", ASK, str(dynamic()), order]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode == 0) == (order == "open"), done.stderr
    assert ("PermissionFrozen" in done.stderr) == (order == "frozen")


def test_the_kernel_permits_what_the_derived_configuration_has_by_default():
    kernel = read_kernel_permission()
    if kernel.host is None:
        pytest.skip("ARCH_GET_XCOMP_PERM (Linux 5.16)")
    config = FpuConfig.from_cpu(Cpu.host())
    assert kernel.supported == config.user_max.features
    assert kernel.host & config.user_default.features == config.user_default.features
    assert kernel.guest & config.user_default.features == config.user_default.features


def test_the_shadow_stack_is_off_or_the_engine_says_so():
    from fpstate.engine import native

    assert shadow_stack_active() == ("shadow stack" in (native.missing() or ""))
