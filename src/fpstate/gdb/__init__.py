"""Commands for gdb. ``extension.py`` is for gdb's ``source``; nothing here needs more than the standard library."""
