"""Puts the tests' shared helpers, `support`, on the import path, and lets Hypothesis take its time."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# How long one example takes says more about what else the machine is doing.
settings.register_profile("ikd", deadline=None)
settings.load_profile("ikd")
