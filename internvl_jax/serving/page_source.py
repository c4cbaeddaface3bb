"""The page at `/` and the policy under which a browser may run it.

`page/index.html` is all there is: style and script stand in it, and the policy names them by their digests. So browsers
run nothing else, whatever a model writes or a picture is called, and load nothing from any other host.
"""

import base64
import hashlib
import pathlib
import re

_PAGE = pathlib.Path(__file__).parent / "page" / "index.html"
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
_POLICY = (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src data: blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # the browser itself refuses to parse text as markup
    "trusted-types 'none'",
)


def page() -> tuple[bytes, str]:
    """The page and the value of the header `Content-Security-Policy` that belongs to it.

    Returns:
      UTF-8 HTML, and the policy: requests to the page's own host alone, pictures of the page itself alone, and the one
      style and the one script by their SHA-256.
    """
    html = _PAGE.read_text(encoding="utf-8")  # with \n at the ends of lines, as browsers digest them
    sources = [f"{name}-src 'sha256-{_digest(text)}'" for name, text in _INLINE.findall(html)]
    return html.encode(), "; ".join([*_POLICY, *sources])


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
