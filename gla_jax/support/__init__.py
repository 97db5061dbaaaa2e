"""What every folder may use: errors, shapes, files, progress, caches."""
