"""Builds and launches the app: `python app.py [--runs DIR] [--port N]`, the same as `pdlab app`."""

import sys

from pdlab.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "app")
    main()
