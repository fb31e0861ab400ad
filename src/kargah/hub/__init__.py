"""The hub: repositories fetched from one, or served as one."""
