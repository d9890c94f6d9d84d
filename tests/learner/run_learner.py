"""The learner service as a process of its own: run_learner.py CONFIG.json URL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from learner.service import LearnerService
from learner.settings import LearnerConfig

if __name__ == "__main__":
    config = LearnerConfig.model_validate_json(Path(sys.argv[1]).read_text())
    sys.exit(LearnerService(config, index=int(os.environ.get("RANK", "0")), url=sys.argv[2]).run())
