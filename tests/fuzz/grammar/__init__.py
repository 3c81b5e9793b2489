"""Grammars of every source kind: bytes of choice in, a file out that is right in all that was not chosen otherwise.

The same bytes make the same file, so that random ones, those of a coverage-guided search and shorter ones all do.
"""
