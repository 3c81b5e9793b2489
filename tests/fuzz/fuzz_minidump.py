"""Fuzzes the target ``minidump``; see harness.py."""

from harness import fuzz

fuzz("minidump")
