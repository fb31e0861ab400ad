"""Everything that needs torch: training, distilling, converting weights, predicting, measuring.

Its programs run as processes of their own (`python -m kargah.compute.train` and its neighbours); no server imports it.
It talks to the rest through files only: the run directory of `kargah.spec`. No network, no telemetry, no progress bars:
the libraries read that from the environment when they are imported, so it is set here, before any of them.
"""

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
)
