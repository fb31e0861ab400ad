"""Runs: their states, queue and supervision, their checkpoints, and the analytics that show them."""
