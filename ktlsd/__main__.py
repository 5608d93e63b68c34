"""`python -m ktlsd` is the same as `ktlsd`."""

import sys

from ktlsd.cli import main

sys.exit(main())
