"""Tests of the training program: tiny real models, real files, real child processes."""

import os

# One thread: the machine is shared, and exact equality must not depend on how many cores there are.
os.environ["OMP_NUM_THREADS"] = "1"
