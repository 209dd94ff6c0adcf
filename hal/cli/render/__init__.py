"""Text for people and programs, from values; each format in its own module, loaded when asked for."""
