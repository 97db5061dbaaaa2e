"""The result of an image, and label maps in the files that annotation and training tools read."""
