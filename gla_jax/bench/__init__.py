"""The cost of segmentation on this machine: seconds, operations, memory."""
