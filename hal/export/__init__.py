"""What a scheduler takes from a lease: environment variables that vendors' software obeys."""
