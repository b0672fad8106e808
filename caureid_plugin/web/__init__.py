"""The search page of ``caureid serve``."""
