"""Measurements of Kargah with a peer beside each. `python -m bench [NAME …] [--quick] [--json FILE]`"""
