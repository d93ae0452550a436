"""`python -m diffusiongemma`: the same command as `diffusiongemma`."""

import sys

from diffusiongemma.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
