"""The names of the formats of raw bytes, for command lines: they do not need what reads them."""

from __future__ import annotations

from typing import Final

IMAGES: Final = ("std", "compacted", "fxsave", "fsave")
"""One image with nothing around it."""
FORMATS: Final = (*IMAGES, "sigframe", "kvm-xsave", "kvm-fpu")
"""Images, the state in a signal frame, and two of KVM's structures."""
