"""Models that Kargah carries, as plain transformers folders."""
