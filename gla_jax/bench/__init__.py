"""What segmentation costs on this machine: seconds, operations, memory."""
