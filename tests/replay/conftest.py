"""The modules of the recorder lie beside the tests of this machine's hardware."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "hardware"))
