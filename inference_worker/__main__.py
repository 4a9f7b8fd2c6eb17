"""`python -m inference_worker`."""

import sys

from inference_worker.worker import run
from shared.service import main

if __name__ == "__main__":
    sys.exit(main("inference_worker", run))
