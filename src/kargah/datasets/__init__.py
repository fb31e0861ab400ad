"""Data sets: taking files in, finding texts and labels in them, splitting them, and showing their rows."""
