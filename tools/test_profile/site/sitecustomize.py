"""Python imports a module of this name at its start: so each program that a test starts counts, too."""

import os
import sys
from pathlib import Path

if "ULTRAMEM_TEST_PROFILE" in os.environ and Path(os.environ["ULTRAMEM_TEST_PROFILE"]).is_dir():
    sys.path.append(str(Path(__file__).parents[2]))
    from test_profile.watch import watch_process

    watch_process("program")
