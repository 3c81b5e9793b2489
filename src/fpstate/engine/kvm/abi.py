"""KVM's numbers and structures as include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h have them."""

from __future__ import annotations

import struct

API_VERSION = 12
"""KVM_API_VERSION: the only one there ever was."""

IOCTLS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_NR_MMU_PAGES": 0xAE44,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_GET_XSAVE2": 0x9000AECF,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
    "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
}
"""Every ioctl that is used, by the name that errors give."""

CAPABILITIES = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_NR_VCPUS": 9,
    "KVM_CAP_NR_MEMSLOTS": 10,
    "KVM_CAP_VCPU_EVENTS": 41,
    "KVM_CAP_DEBUGREGS": 50,
    "KVM_CAP_XSAVE": 55,
    "KVM_CAP_XCRS": 56,
    "KVM_CAP_MAX_VCPUS": 66,
    "KVM_CAP_SYNC_REGS": 74,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
    "KVM_CAP_XSAVE2": 208,
    "KVM_CAP_SYS_ATTRIBUTES": 209,
    "KVM_CAP_X86_TRIPLE_FAULT_EVENT": 218,
}

XCOMP_GUEST_SUPP = 0
"""KVM_X86_XCOMP_GUEST_SUPP: the attribute of /dev/kvm that holds the XCR0 which guests may have."""

XSAVE_SIZE = 4096
"""struct kvm_xsave without its flexible end; what KVM_CAP_XSAVE2 = 0 means (Documentation/virt/kvm/api.rst 4.42)."""
REGS_SIZE, SREGS_SIZE, FPU_SIZE, XCRS_SIZE = 144, 312, 416, 392
EVENTS_SIZE, DEBUGREGS_SIZE = 64, 128
EVENTS_FLAGS, VALID_TRIPLE_FAULT = 20, 0x20
"""Offset of flags in struct kvm_vcpu_events, and KVM_VCPUEVENT_VALID_TRIPLE_FAULT in them."""
ENABLE_CAP = struct.Struct("<IIQ88x")
"""struct kvm_enable_cap: cap, flags, the first argument."""

MEMORY_REGION = struct.Struct("<IIQQQ")
"""struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr."""
READONLY = 1 << 1
"""KVM_MEM_READONLY."""

REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
             "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags")  # fmt: skip
REGS = struct.Struct("<18Q")
"""struct kvm_regs: the registers in the order of REGISTERS."""

SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SEGMENT = struct.Struct("<QIH10B")
"""struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
TABLE = struct.Struct("<QH6x")
"""struct kvm_dtable: base, limit."""
TABLES = ("gdt", "idt")
CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SREGS_TABLES = len(SEGMENTS) * SEGMENT.size
SREGS_CONTROLS = SREGS_TABLES + len(TABLES) * TABLE.size
"""Where struct kvm_sregs has its tables and, 64 bits each, its CONTROLS; then 256 bits of pending interrupts."""

CPUID_HEADER = struct.Struct("<II")
CPUID_ENTRY = struct.Struct("<7I12x")
"""struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx."""
MSRS_HEADER = struct.Struct("<II")
MSR_ENTRY = struct.Struct("<IIQ")
"""struct kvm_msr_entry: index, reserved, data."""
XCRS_HEADER = struct.Struct("<II")
XCR_ENTRY = struct.Struct("<IIQ")
"""struct kvm_xcr: xcr, reserved, value."""
DEVICE_ATTRIBUTE = struct.Struct("<IIQQ")
"""struct kvm_device_attr: flags, group, attr, address."""

RUN_IMMEDIATE_EXIT, RUN_EXIT_REASON, RUN_UNION = 1, 8, 32
RUN_VALID_REGS, RUN_DIRTY_REGS, RUN_SYNC = 288, 296, 304
"""Offsets in struct kvm_run: immediate_exit, exit_reason, the union by exit reason, kvm_valid_regs,
kvm_dirty_regs, and struct kvm_sync_regs (regs, sregs, events one behind the other)."""
RUN_IO = struct.Struct("<BBHIQ")
"""The union for KVM_EXIT_IO: direction, size, port, count, data_offset."""
RUN_INTERNAL = struct.Struct("<II")
"""The union for KVM_EXIT_INTERNAL_ERROR: suberror, ndata."""
IO_OUT = 1
SYNC_REGS, SYNC_SREGS, SYNC_EVENTS = 1, 2, 4
"""KVM_SYNC_X86_REGS, _SREGS, _EVENTS."""

EXITS = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO",
    7: "IRQ_WINDOW_OPEN", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 11: "SET_TPR", 12: "TPR_ACCESS",
    16: "NMI", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT", 26: "IOAPIC_EOI", 27: "HYPERV",
    29: "X86_RDMSR", 30: "X86_WRMSR", 31: "DIRTY_RING_FULL", 33: "X86_BUS_LOCK", 34: "XEN",
    37: "NOTIFY", 39: "MEMORY_FAULT",
}  # fmt: skip
"""KVM_EXIT_*."""
EXIT_IO, EXIT_HLT, EXIT_MMIO, EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTR, EXIT_INTERNAL_ERROR = (
    2, 5, 6, 8, 9, 10, 17,
)  # fmt: skip
