"""The drill: real runs whose server and training programs are killed at random moments, and what must hold afterwards.

Every run that was battered is held against an unbroken one of the same spec. `docs/drill.md` tells what is checked.
"""
