"""Coverage-guided fuzzing of one target with atheris, from the fixed corpus; what crashes is kept as a file.

python tests/fuzz/fuzz_core.py [libFuzzer's options, such as -max_total_time=60]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

LONGEST = 16 << 10
MEMORY_MIB = 1024
SECONDS_PER_INPUT = 10


def fuzz(target: str) -> None:
    """Fuzz a target with the options of the command line; exits with 3 where atheris is not installed."""
    try:
        import atheris
    except ImportError as error:
        print(f"fuzzing needs atheris, which is not installed here: {error}", file=sys.stderr)
        raise SystemExit(3) from error
    with atheris.instrument_imports(include=["fpstate"]):
        from targets import CORPUS, CPUS, attempt

    def one_input(data: bytes) -> None:
        """The first byte chooses the processor that is named."""
        if data:
            attempt(target, data[1:], cpu=CPUS[data[0] % len(CPUS)])

    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((CORPUS / target).iterdir()):
            for number in range(len(CPUS)):
                (Path(folder) / f"{path.name}-{number}").write_bytes(bytes([number]) + path.read_bytes())
        bounds = (f"-max_len={LONGEST}", f"-rss_limit_mb={MEMORY_MIB}", f"-timeout={SECONDS_PER_INPUT}")
        atheris.Setup([sys.argv[0], *bounds, *sys.argv[1:], folder], one_input)
        atheris.Fuzz()
