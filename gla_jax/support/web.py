"""Files at https:// addresses: bytes and seconds are bounded, and no answer leads to another kind of address."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from gla_jax.support.version import VERSION

SCHEMES = ("https",)
SECONDS_WITHOUT_A_BYTE = 20.0
MAX_SECONDS, MAX_SECONDS_TO_FETCH = 120.0, 24 * 3600.0  # of what goes into memory, and of large files
CHUNK = 2**20
WEB = ("http://", "https://")


def is_web(place: Any) -> bool:
    """True for an http:// or https:// address, as text or as a path that stands for one."""
    return str(place).lower().startswith(WEB)


def read_web(address: str, max_bytes: int) -> bytes:
    """The file at an address. Raises OSError when there is none, or it is larger."""
    with _answer(address) as (answer, _):
        return b"".join(_chunks(answer, max_bytes, MAX_SECONDS))


def fetch_web(address: str, path: Path, max_bytes: int) -> None:
    """Write the file at an address to a path. Raises OSError when there is none, or it is larger."""
    with _answer(address) as (answer, _), path.open("xb") as file:
        for chunk in _chunks(answer, max_bytes, MAX_SECONDS_TO_FETCH):
            file.write(chunk)


def stamp_of_web(address: str) -> list[Any]:
    """Size and mark (ETag, else date of change) of the file at an address, by a request without its content.

    Raises OSError when there is none, or it has no mark.
    """
    with _answer(address, "HEAD") as (_, headers):
        mark = headers["ETag"] or headers["Last-Modified"]
        if not mark:
            raise OSError("the server does not say when it changes")
        return [headers["Content-Length"], mark]


class _SameSchemes(request.HTTPRedirectHandler):
    """Follows redirects to addresses of SCHEMES alone."""

    max_redirections = 5

    def redirect_request(
        self, req: request.Request, fp: HTTPResponse, code: int, msg: str, headers: Message, newurl: str
    ) -> request.Request | None:
        try:
            _check_scheme(newurl)
        except OSError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _answer(address: str, method: str = "GET") -> Iterator[tuple[HTTPResponse, Message]]:
    """The body and the headers of an answer. Whatever fails inside the block becomes an OSError with one reason."""
    _check_scheme(address)
    # None of urllib's handlers for files, FTP and data: addresses is in here.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPSHandler(),
        *([request.HTTPHandler()] if "http" in SCHEMES else []),
        _SameSchemes(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    question = request.Request(address, headers={"User-Agent": f"gla-jax/{VERSION}"}, method=method)
    try:
        with opener.open(question, timeout=SECONDS_WITHOUT_A_BYTE) as answer:
            yield answer, answer.headers
    except HTTPError as error:
        error.close()
        raise OSError(f"the server says {error.code} {error.reason}") from None
    except URLError as error:
        raise OSError(str(getattr(error.reason, "strerror", None) or error.reason)) from None
    except (HTTPException, ValueError) as error:  # ValueError: no address at all
        raise OSError(f"the answer cannot be used ({type(error).__name__}: {error})") from None


def _chunks(answer: HTTPResponse, max_bytes: int, max_seconds: float) -> Iterator[bytes]:
    """The body, counted as it comes: what a server says of its length is not trusted."""
    size, end = 0, time.monotonic() + max_seconds
    while chunk := answer.read1(CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise OSError(f"it has more than {max_bytes >> 20} MiB")
        if time.monotonic() > end:
            raise OSError(f"it takes longer than {max_seconds:.0f} s")
        yield chunk


def _check_scheme(address: str) -> None:
    scheme = urlsplit(address).scheme.lower()
    if scheme not in SCHEMES:
        raise OSError(f"{scheme}:// is not read; give an address with {' or '.join(SCHEMES)}://")
