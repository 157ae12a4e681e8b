"""Networks: `network(z, logsnr, labels=None)` gives the raw output that a parameterization reads."""
