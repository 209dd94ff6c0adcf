"""The checks of each kind."""
