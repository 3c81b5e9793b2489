"""Recording what this processor and its kernel answer, in the form of tests/data/oracles_intel/README.md.

``child.c`` and ``operations.S`` perform single instructions, ``traced.c`` is a process whose registers are set.
Nothing here foretells an answer: inputs are made by chance, and what came of them is written down.
"""
