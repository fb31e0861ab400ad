"""The verbs of the command `kargah`, one file each, and the console they share."""
