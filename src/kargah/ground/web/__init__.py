"""The web kit: envelope, errors, guards, paging and event streams. A room's routes are built from these alone."""
