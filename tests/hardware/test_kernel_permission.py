"""Requests for components fail as the running kernel's arch_prctl does."""

import pytest

from fpstate.arch import Cpu
from fpstate.errors import PermissionRequestError
from fpstate.vso.config import FpuConfig
from fpstate.vso.kernel_permission import (
    read_kernel_permission,
    request_from_kernel,
    shadow_stack_active,
)
from fpstate.vso.permission import Permissions


def refusal(request, argument) -> str | None:
    try:
        request(argument)
    except PermissionRequestError as error:
        return error.errno_name
    return None


@pytest.mark.parametrize("component", range(63))
def test_a_request_is_answered_as_the_kernel_answers_it(component):
    if read_kernel_permission().host is None:
        pytest.skip("ARCH_GET_XCOMP_PERM (Linux 5.16)")
    ours = refusal(Permissions(FpuConfig.from_cpu(Cpu.host())).request, component)
    kernels = refusal(request_from_kernel, 1 << component)
    if component == 19 and kernels == "EINVAL":
        pytest.skip("a kernel that knows APX (Linux 6.16)")
    assert ours == kernels


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
