"""The mathematics: pure functions and small classes; no files, no training.

Everywhere: images `[B, C, H, W]` (points `[B, D]`), float32, data in [−1, 1]; times `t` `[B]` or a scalar in
[0, 1], t = 0 data, t = 1 noise; `z_t = alpha x + sigma eps` with `alpha² + sigma² = 1`.
"""
