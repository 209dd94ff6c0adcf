"""The commands: hal-probe looks, hal claims and opens."""
