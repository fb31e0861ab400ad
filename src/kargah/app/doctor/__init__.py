"""`kargah doctor --full`: this machine measured, device by device, and a report that can be pasted into an issue.

Each room of the examination (`system`, `disk`, `hubs`, `devices`) gives facts, which the report shows, and findings,
which people read. What was not measured is None, with its reason under `unmeasured`.
"""
