"""``python -m hal_mocks.upmem_sim``: the same as ``hal-dpucc``."""

from __future__ import annotations

import sys

from hal_mocks.upmem_sim.cli import main

sys.exit(main())
