"""Who has what: a pure state machine, its allocator, and the journal that it is replayed from."""
