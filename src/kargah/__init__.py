"""Kargah: a self-hosted, Persian-first workshop for approved models, real training and checkpoints that stay."""

__version__ = "0.1.0"
