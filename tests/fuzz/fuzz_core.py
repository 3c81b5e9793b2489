"""Fuzzes the target ``core``; see harness.py."""

from harness import fuzz

fuzz("core")
