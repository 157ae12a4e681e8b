"""One training loop for teachers and students, and what it needs: presets, EMA, checkpoints, the machine."""
