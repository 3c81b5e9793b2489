"""``python -m fpstate``: the same as the command ``fpstate``."""

import sys

from fpstate.command.start import start

sys.exit(start())
