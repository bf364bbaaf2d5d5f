"""What the run's own scan takes for a secret."""

from __future__ import annotations

import pytest

from gateway.auth import TOKEN_PREFIX
from gateway.logs import redact_text
from leases.ids import new_token
from tests.secrecy import check, secrets_in

TOKEN = TOKEN_PREFIX + new_token(24)
SECRETS = [
    f"Bearer {TOKEN}",
    f"http://a/b?X-Amz-Expires=60&X-Amz-Signature={'0a' * 32}",
    f"http://a/blobs/x?expires=1&signature={new_token(32)}",
]


@pytest.mark.parametrize("text", SECRETS, ids=["token", "S3", "local"])
def test_a_secret_is_found_and_its_redaction_is_none(text: str) -> None:
    assert len(list(secrets_in(text))) == 1
    with pytest.raises(AssertionError, match="the words"):
        check(text, where="the words")
    check(redact_text(text), where="the words")
