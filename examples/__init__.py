"""Samples to copy. Nothing of the service imports them."""
