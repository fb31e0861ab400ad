"""What the server and the training program agree on: the run's spec, its directory, journal, lock and manifests.

Standard library only: the training program imports this before it may import anything heavy.
"""
