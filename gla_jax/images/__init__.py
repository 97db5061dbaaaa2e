"""Image files to windows: reading, resizing, cutting."""
