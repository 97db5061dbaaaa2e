"""A page to try the method in a browser."""
