"""One logger for the package: quiet unless the program that uses it says otherwise."""

import logging

logger = logging.getLogger("diffusiongemma")
logger.addHandler(logging.NullHandler())
