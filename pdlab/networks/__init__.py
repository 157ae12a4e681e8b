"""Networks: `network(z, logsnr, …)` gives what a parameterization reads; see `registry` for one of your own."""

from pdlab.networks import mlp, unet  # noqa: F401  # they register themselves
