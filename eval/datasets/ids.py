"""Image ids that come from data: split files, copies' metadata, folders, records."""

import re
import unicodedata
from typing import Any

from gla_jax.support.errors import DataError


def checked_id(image_id: Any, where: str) -> str:
    """The id if it is a plain relative name, which stays inside any folder that it is joined to, on any platform.

    where: the file, and the line, that messages name. Raises DataError.
    """
    if (
        not isinstance(image_id, str)
        or any(part in ("", ".", "..") for part in image_id.split("/"))  # "" also begins an absolute path
        or "\\" in image_id
        or re.match("[A-Za-z]:", image_id)
        or any(unicodedata.category(character) in ("Cc", "Cs") for character in image_id)
    ):
        raise DataError(
            f"{where} has {str(image_id)[:80]!r} for an image id; an id is a plain relative name such as city/image_1, "
            'without "..", backslashes, drive letters and control characters.'
        )
    return image_id
