"""The driver contract, the hooks, and the guarded loading of plugins."""
