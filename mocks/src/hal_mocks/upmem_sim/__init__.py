"""A functional simulator of UPMEM's processing units, below the driver: programs in C for the SDK run unmodified."""
