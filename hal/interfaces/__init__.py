"""What an opened device can do, one module a kind; :mod:`hal.interfaces.common` holds what all share."""
