"""Ground of all folders: errors, shapes, files, progress, caches."""
