"""A complete plugin, made to be copied. This module only registers."""
