"""The conformance kit for plugin authors, and the pytest plugin; nothing else in hal imports it."""
