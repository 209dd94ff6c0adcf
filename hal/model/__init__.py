"""Values only: no I/O and no clocks. Import the modules, or the names from :mod:`hal`."""
