"""A request that isn't answered, and how the client is told."""

from typing import Any


class Refusal(Exception):
    """Ends a request with an HTTP status and OpenAI's error body.

    Attributes:
      status: of HTTP, 400 and up.
      message: one sentence: what, where, what to do; nothing of pictures or texts beyond 40 characters.
      param: the field of the request that it is about.
      code: a word for programs.
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
