"""The checks of the lab, by subject. Each is a function whose first line of documentation is its title."""
