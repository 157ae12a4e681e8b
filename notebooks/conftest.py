"""nbmake runs the notebooks as they ship, in their fast mode, which their first cell reads.

What the cells' tags mean is said in `pdlab.teaching.exercises`.
"""

import os

os.environ["PDLAB_FAST"] = "1"
