"""Choosing devices: places, matching, views, and why not."""
