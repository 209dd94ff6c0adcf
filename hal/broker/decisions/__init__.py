"""The decisions, by what they are about: each returns records and an answer, and changes nothing."""
