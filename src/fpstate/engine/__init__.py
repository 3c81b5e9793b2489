"""Where a state becomes registers. ``availability()`` tells which engines work on this machine, and why not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Availability:
    """One engine: whether it works here, and the reason where it does not."""

    name: str
    works: bool
    reason: str


def availability() -> tuple[Availability, ...]:
    """Return every engine of this build."""
    from fpstate.engine import native
    from fpstate.engine.kvm import engine as kvm
    from fpstate.engine.model import engine as model

    return (
        _availability("native", native.missing(), "user-mode vCPUs in this process"),
        _availability("kvm", kvm.missing(), "guests on KVM vCPUs"),
        _availability("model", model.missing(), "scripted contexts on processors in software"),
    )


def _availability(name: str, lacking: str | None, description: str) -> Availability:
    return Availability(name, lacking is None, lacking or description)
