"""``python -m fpstate``: the same as the command ``fpstate``."""

import sys

from fpstate.command.main import main

sys.exit(main())
