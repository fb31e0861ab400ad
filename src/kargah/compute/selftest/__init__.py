"""Whether this machine can train: every device that torch finds, measured and trained on for a moment.

`python -m kargah.compute.selftest` tells what is there; with `--device NAME` it tests one device, so that a crash or a
lack of memory on it ends that process alone. What was not measured is null, with its reason under `unmeasured`.
"""
