"""One image over many devices, and several processes of one run."""
