import itertools
import socket
import ssl

import pytest

from gateway.models import failures
from gateway.models.failures import MAX_QUOTE_CHARS, Upstream, from_exception, from_status, retry_after, scrub
from protocol.codes import ErrorCode

HERE = Upstream("http://127.0.0.1:9999/v1", "s3cret-key")
NOW_S = 1_800_000_000.0

REJECTED = ErrorCode.UPSTREAM_REJECTED
RATE, AWAY, CONTEXT = ErrorCode.UPSTREAM_RATE_LIMITED, ErrorCode.UPSTREAM_UNAVAILABLE, ErrorCode.CONTEXT_TOO_LARGE

OPENAI_401 = {
    "message": "Incorrect API key provided: sk-abcd****wxyz. You can find your API key at https://x.",
    "type": "invalid_request_error",
    "code": "invalid_api_key",
}


def error(**fields: object) -> dict[str, object]:
    return {"error": fields}


@pytest.mark.parametrize(
    ("status", "body", "code", "transient", "words"),
    [
        (401, {"error": OPENAI_401}, REJECTED, False, "refused the API key (401): check OPENAI_API_KEY"),
        (402, "pay", REJECTED, False, "no credit left"),
        (403, error(code="unsupported_country", message="no!"), REJECTED, False, "(403, unsupported_country)"),
        (404, error(message="The model `gpt-9` does not exist"), REJECTED, False, "(The model `gpt-9` does not exist)"),
        (404, {"detail": "Not Found"}, REJECTED, False, "(404) (Not Found): check MODEL and OPENAI_BASE_URL"),
        (404, "File Not Found", REJECTED, False, "(File Not Found)"),
        (400, error(message="bad temperature"), REJECTED, False, "(400) (bad temperature)"),
        (400, error(type="invalid_request_error"), REJECTED, False, "(400) (invalid_request_error)"),
        (400, None, REJECTED, False, "(400)."),
        (422, {"detail": [{"loc": ["body"]}]}, REJECTED, False, "(422)."),
        (405, "x", REJECTED, False, "(405)"),
        (307, "", REJECTED, False, "only redirects"),
        (501, "", REJECTED, False, "(501)"),
        (400, error(code="context_length_exceeded", message="x"), CONTEXT, False, "context window"),
        (400, error(message="This model's maximum context length is 8192 tokens."), CONTEXT, False, "context window"),
        (400, error(type="exceed_context_size_error", code=400), CONTEXT, False, "context window"),
        (413, "", CONTEXT, False, "context window"),
        (413, error(code="rate_limit_exceeded"), RATE, True, "too many requests"),
        (429, error(code="rate_limit_exceeded"), RATE, True, "too many requests"),
        (429, "", RATE, True, "too many requests"),
        (429, error(code="insufficient_quota", type="insufficient_quota"), RATE, False, "quota"),
        (408, "", AWAY, True, "(408)"),
        (409, "", AWAY, True, "(409)"),
        (500, error(type="server_error", message="secret detail"), AWAY, True, "(500, server_error)"),
        (502, "<html>", AWAY, True, "(502)"),
        (503, None, AWAY, True, "(503)"),
        (529, "", AWAY, True, "(529)"),
    ],
)
def test_status(status: int, body: object, code: ErrorCode, transient: bool, words: str) -> None:
    failure = from_status(status, {}, body, HERE, now_s=NOW_S)
    assert failure.code is code
    assert failure.transient is transient
    assert words in failure.message
    assert not any(hidden in failure.message for hidden in ("abcd", "wxyz", "secret detail", "no!", "<html>"))


def test_used_up_quota_is_not_retryable() -> None:
    failure = from_status(429, {"retry-after": "5"}, error(code="insufficient_quota"), HERE, now_s=NOW_S)
    assert not failure.retryable
    assert failure.retry_after_s is None


@pytest.mark.parametrize("status", [429, 503, 529])
def test_retry_after_is_handed_on(status: int) -> None:
    assert from_status(status, {"Retry-After": "7"}, None, HERE, now_s=NOW_S).retry_after_s == 7


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"Retry-After": "20"}, 20),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0),
        ({"retry-after": "999999999"}, failures.MAX_RETRY_AFTER_S),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1.2.3"}, None),
        ({"retry-after-ms": "nan"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected_s: float | None) -> None:
    assert retry_after(headers, NOW_S) == expected_s


def chained(*causes: BaseException) -> BaseException:
    for outer, inner in itertools.pairwise(causes):
        outer.__cause__ = inner
    return causes[0]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(), "Nothing answers at http://127.0.0.1:9999/v1: is the server there running?"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "TLS certificate"),
        (socket.gaierror(-2, "unknown"), "can't be found: check OPENAI_BASE_URL"),
        (TimeoutError(), "did not accept a connection in time"),
        (ConnectionResetError(), "failed before it answered"),
    ],
)
def test_exceptions(cause: BaseException, words: str) -> None:
    failure = from_exception(chained(RuntimeError("a"), RuntimeError("b"), cause), HERE)
    assert failure.code is AWAY
    assert failure.transient
    assert words in failure.message


def test_a_circle_of_causes_ends() -> None:
    one, two = RuntimeError(), RuntimeError()
    one.__cause__, two.__cause__ = two, one
    assert "failed before it answered" in from_exception(one, HERE).message


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("http://user:pass@host:1/v1/?key=abc#x", "http://host:1/v1"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("http://[::1]:8000/v1/", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_carries_no_secret(base_url: str, address: str) -> None:
    assert failures.upstream_at(base_url, None).address == address


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklm",
        "sk-ab12****89yz",
        "gsk_a1b2c3d4e5f6",
        "Bearer abc.def",
        "Authorization: Basic dXNlcg==",
        "api_key=abcdef",
        'api-key": "abcdef"',
        "API key provided: opaque123",
        "eyJhbGciOi.eyJzdWIi.c2ln",
        "0123456789abcdef0123456789abcdef",
        "https://user:pass@host",
        "s3cret-key",
    ],
)
def test_scrub_hides(secret: str) -> None:
    shown = scrub(f"The request with {secret} failed", "s3cret-key")
    assert "[hidden]" in shown
    assert shown.endswith("failed")
    parts = [p for p in secret.replace(":", " ").replace("=", " ").split() if len(p) > 5]
    assert parts[-1].strip('"') not in shown


@pytest.mark.parametrize(
    "plain",
    [
        "The model `gpt-4o-mini-2024-07-18` does not exist",
        "max_tokens is too large: 5000. This model supports at most 4096 completion tokens",
        "Invalid value for 'tools[0].function.parameters': null",
    ],
)
def test_scrub_leaves_plain_words(plain: str) -> None:
    assert scrub(plain, "s3cret-key") == plain


def test_scrub_makes_one_short_line() -> None:
    assert scrub("a\n\tb\x00\x1b[31m") == "a b[31m"
    assert len(scrub("word " * 100)) == MAX_QUOTE_CHARS
