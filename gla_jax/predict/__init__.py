"""Prepared images to labels on the devices that hold a model, and what that will cost."""
