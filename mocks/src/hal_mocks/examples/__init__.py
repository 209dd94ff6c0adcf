"""Programs on hal's interfaces, made to be copied, and examined by the tests."""
