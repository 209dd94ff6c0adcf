"""A cluster's trace replayed: through the broker's core on virtual time, and through first fit and best fit."""
