"""For all tests: one thread (tiny networks are slower on two), and a cache of the tests' own."""

import os
import tempfile

import torch

torch.set_num_threads(1)
# Before any import reads it, and inherited by the commands that tests start.
os.environ["PDLAB_CACHE"] = tempfile.mkdtemp(prefix="pdlab-tests-")
