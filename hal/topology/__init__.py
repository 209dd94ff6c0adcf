"""What is near what: places, distances, and nets of address translation."""
