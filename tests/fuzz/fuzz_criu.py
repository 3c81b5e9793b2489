"""Fuzzes the target ``criu``; see harness.py."""

from harness import fuzz

fuzz("criu")
