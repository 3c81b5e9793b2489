#!/bin/sh
# Run a command with the sanitizers' run-time libraries. The core handles the fault signals itself,
# and Python's own allocations are not looked at for leaks: the tests count those.
set -eu
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=1:thread_local_quarantine_size_kb=64:use_sigaltstack=0:handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
FPSTATE_SANITIZED=1
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS FPSTATE_SANITIZED
exec "$@"
