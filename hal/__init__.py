"""hal: one way to find, lease, open and mend the accelerators of a data center."""
