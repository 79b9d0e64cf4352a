import sys

from elvi_survey.cli import main

sys.exit(main())
