"""One training loop for teachers and students, and what it needs: presets, EMA, checkpoints, the machine."""

from pdlab.adapters import pipelines  # noqa: F401  # it registers its network, which checkpoints may name
