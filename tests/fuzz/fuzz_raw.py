"""Fuzzes the target ``raw``; see harness.py."""

from harness import fuzz

fuzz("raw")
