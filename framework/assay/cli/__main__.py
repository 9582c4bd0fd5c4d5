"""`python -m assay.cli`: the same as `assay`."""

import sys

from assay.cli.main import main

sys.exit(main())
