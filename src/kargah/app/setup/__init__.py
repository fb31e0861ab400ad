"""`kargah setup compute`: bring the training part (torch, transformers and what they need) over a network that breaks.

Four steps, each of which can be killed: *resolve* (pip says which wheels, without fetching them), *fetch* (ranged,
resumed, verified), *install* (pip again, without a network) and *prove* (a child imports them). A folder of wheels, a
stick for instance, takes the place of the first two.
"""
