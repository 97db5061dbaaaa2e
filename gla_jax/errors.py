"""The errors a user can cause: each message is one sentence with the input, the reason and the way out."""


class UserError(Exception):
    """Something the user gave cannot be used; the command line prints the message alone and exits with 2."""


class ModelError(UserError):
    """A model name or folder that cannot be loaded or downloaded."""


class ConversionError(UserError):
    """A weight file that cannot be converted: unsafe, truncated, or of an architecture the rules do not cover."""


class ImageError(UserError):
    """An image file that cannot be read."""


class ClassesError(UserError):
    """A list of class names that cannot be used."""


class DataError(UserError):
    """A benchmark's data that is missing, damaged or not laid out as expected."""
