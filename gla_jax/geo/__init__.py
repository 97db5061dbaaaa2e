"""Rasters of any size, block by block, with their place on the ground."""
