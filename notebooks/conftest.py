"""The tests run notebooks in their fast mode, which their first cell reads."""

import os

os.environ["PDLAB_FAST"] = "1"
