"""`kargah demo`: the main job from end to end on this machine, offline, with things breaking on the way."""
