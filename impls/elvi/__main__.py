"""`python -m elvi` is `elvi`."""

import sys

from elvi.cli import main

sys.exit(main())
