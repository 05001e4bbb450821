"""``python -m hf_multitask.cli``, for ``accelerate launch`` and ``torchrun``."""

import sys

from . import main

sys.exit(main())
