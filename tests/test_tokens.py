"""JSON Web Tokens: which count and whose they are, and each way to forge one that is known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import SettingsError
from wires.tokens import LONGEST, Tokens

from .access import (
    COOKIE,
    DAY,
    KEYS,
    SECRET,
    WEB,
    bearer,
    by_key,
    by_secret,
    claims,
    issued,
    jwk,
    jwks,
    made,
    part,
    placed,
    private_keys,
    serving,
    stranger,
    token,
)
from .asgi import ask, run_ahead
from .sockets import HandSocket

AUDIENCE, ISSUER = "sidestream", "https://issuer.example"
NOW = int(claims()["exp"]) - DAY  # type: ignore[call-overload]  # a claim may be anything; ours is a number


def meant(**changes: object) -> dict[str, object]:
    """Claims that are meant for us, with these changes."""
    return claims(**{"aud": AUDIENCE, "iss": ISSUER, **changes})


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(jwks())
    return str(path)


@pytest.fixture(scope="module")
def strict(keys_file: str) -> Tokens:
    """Takes tokens of either kind, of one issuer for one audience."""
    return Tokens(SECRET, keys_file, AUDIENCE, ISSUER)


GOOD: dict[str, Callable[[], str]] = {
    "HS256": lambda: token(meant()),
    "HS384": lambda: made({"alg": "HS384"}, meant(), by_secret(digest="sha384")),
    "HS512": lambda: made({"alg": "HS512"}, meant(), by_secret(digest="sha512")),
    "RS256": lambda: issued("RS256", meant()),
    "ES256": lambda: issued("ES256", meant()),
    "EdDSA": lambda: issued("EdDSA", meant()),
    "a secret's, with a kid of the issuer's": lambda: token(meant(), kid="v7"),
    "for others as well": lambda: token(meant(aud=["other", AUDIENCE])),
    "good since just now": lambda: token(meant(nbf=NOW - 1, iat=NOW - 1)),
    "with more in it": lambda: token(meant(admin=False, scope="a b", nested={"a": [1]})),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_a_token_that_is_in_order_is_its_subjects(strict: Tokens, make: Callable[[], str]) -> None:
    assert strict.subject(make()) == "ann"


CLAIMS: dict[str, dict[str, object]] = {
    "expired": {"exp": NOW - 1},
    "without an end": {"exp": None},
    "with an end that is no time": {"exp": "soon"},
    "with an end that is a list": {"exp": [NOW + DAY]},
    "with an end that is an object": {"exp": {"at": NOW + DAY}},
    "with an end that is not a number": {"exp": float("nan")},
    "with an end that never comes": {"exp": float("inf")},
    "not good yet": {"nbf": NOW + DAY},
    "not good before a word": {"nbf": "later"},
    "not good before a list": {"nbf": [1]},
    "not good before eternity": {"nbf": float("inf")},
    "of tomorrow": {"iat": NOW + DAY},
    "nobody's": {"sub": None},
    "of an empty name": {"sub": ""},
    "of a number": {"sub": 7},
    "of a list": {"sub": ["ann"]},
    "of an object": {"sub": {"name": "ann"}},
    "of nothing true": {"sub": False},
    "for another audience": {"aud": "other"},
    "for no audience": {"aud": None},
    "for an audience that ours begins with": {"aud": AUDIENCE[:-1]},
    "for an audience that begins with ours": {"aud": AUDIENCE + "2"},
    "for nobody": {"aud": []},
    "for a number": {"aud": 7},
    "for numbers": {"aud": [7, [AUDIENCE]]},
    "for an object": {"aud": {AUDIENCE: True}},
    "of another issuer": {"iss": "https://other.example"},
    "of no issuer": {"iss": None},
    "of an issuer that ours begins with": {"iss": ISSUER[:-1]},
    "of an issuer that is a letter of ours": {"iss": "h"},
    "of an empty issuer": {"iss": ""},
    "of issuers": {"iss": [ISSUER]},
    "of a number for an issuer": {"iss": 7},
    "of an object for an issuer": {"iss": {ISSUER: 1}},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("make", [token, lambda payload: issued("ES256", payload)], ids=["secret", "key"])
def test_a_token_with_a_claim_out_of_order_is_nobodys(
    strict: Tokens, make: Callable[[object], str], changes: dict[str, object]
) -> None:
    assert strict.subject(make(meant())) == "ann"
    assert strict.subject(make(meant(**changes))) is None


def public(encoding: Encoding, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return private_keys()["RS256"].public_key().public_bytes(encoding, form)


# What an issuer publishes, as somebody may take it for a secret (RFC 8725, 2.1).
PUBLISHED: dict[str, Callable[[], bytes]] = {
    "PEM": lambda: public(Encoding.PEM),
    "PEM without its last line end": lambda: public(Encoding.PEM).strip(),
    "PKCS1": lambda: public(Encoding.PEM, PublicFormat.PKCS1),
    "DER": lambda: public(Encoding.DER),
    "JWK": lambda: json.dumps(jwk("RS256")).encode(),
    "modulus": lambda: str(jwk("RS256")["n"]).encode(),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("publish", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("secret", [SECRET, ""], ids=["beside a secret", "keys alone"])
def test_a_public_key_is_no_secret(keys_file: str, publish: Callable[[], bytes], secret: str) -> None:
    tokens = Tokens(secret, keys_file)
    assert tokens.subject(issued("RS256")) == "ann"
    for algorithm in ("HS256", "RS256", "ES256", "EdDSA"):
        for header in ({"alg": algorithm}, {"alg": algorithm, "kid": "RS256"}):
            assert tokens.subject(made(header, claims(), by_secret(publish()))) is None


GARBAGE = part(b"not JSON")
FORGED: dict[str, Callable[[], str]] = {
    "none": lambda: made({"alg": "none"}, meant(), lambda message: b""),
    "none, in other letters": lambda: made({"alg": "nOnE"}, meant(), lambda message: b""),
    "none, signed all the same": lambda: made({"alg": "none"}, meant(), by_secret()),
    "none, for a key": lambda: made({"alg": "none", "kid": "RS256"}, meant(), lambda message: b""),
    "an empty algorithm": lambda: made({"alg": ""}, meant(), by_secret()),
    "no algorithm": lambda: made({"typ": "JWT"}, meant(), by_secret()),
    "a list of algorithms": lambda: made({"alg": ["HS256"]}, meant(), by_secret()),
    "an object of an algorithm": lambda: made({"alg": {"HS256": 1}, "kid": "RS256"}, meant(), by_secret()),
    "an unknown algorithm": lambda: made({"alg": "HS1"}, meant(), by_secret(digest="sha1")),
    "another digest": lambda: made({"alg": "HS512"}, meant(), by_secret()),
    "no signature": lambda: made({"alg": "HS256"}, meant(), lambda message: b""),
    "half a signature": lambda: made({"alg": "HS256"}, meant(), lambda message: by_secret()(message)[:16]),
    "another secret": lambda: made({"alg": "HS256"}, meant(), by_secret(SECRET[:-1])),
    "another token's signature": lambda: f"{token(meant(sub='bob')).rpartition('.')[0]}.{token(meant()).split('.')[2]}",
    "a signature of zeros, RSA": lambda: made({"alg": "RS256", "kid": "RS256"}, meant(), lambda message: bytes(256)),
    "a signature of zeros, ECDSA": lambda: made({"alg": "ES256", "kid": "ES256"}, meant(), lambda message: bytes(64)),
    "a signature of zeros, EdDSA": lambda: made({"alg": "EdDSA", "kid": "EdDSA"}, meant(), lambda message: bytes(64)),
    "another's key": lambda: made({"alg": "ES256", "kid": "ES256"}, meant(), by_key("ES256", stranger())),
    "another's key, which it brings along": lambda: made(
        {"alg": "ES256", "kid": "ES256", "jwk": jwk("ES256"), "jku": "https://evil.example/"},
        meant(),
        by_key("ES256", stranger()),
    ),
    "a key that nobody knows": lambda: issued("ES256", meant(), kid="ES257"),
    "no key named, where there are several": lambda: made({"alg": "ES256"}, meant(), by_key("ES256")),
    "a key of another kind": lambda: issued("ES256", meant(), kid="EdDSA"),
    "another algorithm of the same key": lambda: made(
        {"alg": "RS512", "kid": "RS256"}, meant(), by_key("RS512", private_keys()["RS256"])
    ),
    "a path for a key": lambda: issued("ES256", meant(), kid="../../dev/null"),
    "a number for a key": lambda: made({"alg": "ES256", "kid": 1}, meant(), by_key("ES256")),
    "a list for a key": lambda: made({"alg": "ES256", "kid": ["ES256"]}, meant(), by_key("ES256")),
    "a critical extension (RFC 7515, 4.1.11)": lambda: token(meant(), crit=["exp2"], exp2=1),
    "a payload that is not encoded (RFC 7797)": lambda: token(meant(), b64=False, crit=["b64"]),
    "a payload that is no JSON": lambda: made({"alg": "HS256"}, b"not JSON", by_secret()),
    "a payload that is no object": lambda: made({"alg": "HS256"}, ["ann"], by_secret()),
    "a payload that nests too deeply": lambda: made({"alg": "HS256"}, b"[" * 6000, by_secret()),
    "a header that is no JSON": lambda: made(b"{", meant(), by_secret()),
    "a header that is no object": lambda: made(["HS256"], meant(), by_secret()),
    "a header that nests too deeply": lambda: made(b"[" * 6000, meant(), by_secret()),
    "a header that is no UTF-8": lambda: made(b'{"alg":"HS256\xff"}', meant(), by_secret()),
    "two parts": lambda: token(meant()).rpartition(".")[0],
    "four parts": lambda: f"{token(meant())}.{GARBAGE}",
    "five parts, as if encrypted (RFC 7516)": lambda: f"{part({'alg': 'dir', 'enc': 'A128GCM'})}..{GARBAGE * 3}",
    "dots": lambda: "..",
    "a space before it": lambda: " " + token(meant()),
    "a line end after it": lambda: token(meant()) + "\n",
    "NUL": lambda: token(meant()) + "\0",
    "letters of no base64": lambda: token(meant()).replace("e", "é"),
    "nothing": lambda: "",
    "a megabyte": lambda: token(meant()) + "A" * 2**20,
    "a megabyte of brackets": lambda: part(b"[" * 2**20) + ".A.A",
}


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_a_forged_token_is_nobodys(strict: Tokens, make: Callable[[], str]) -> None:
    assert strict.subject(make()) is None


@given(st.text(max_size=200) | st.text("eyJhbGciOiJIUzI1NiJ9._-=", max_size=200))
def test_what_is_no_token_is_nobodys(text: str) -> None:
    assert Tokens(SECRET).subject(text) is None


@given(st.data())
def test_no_letter_of_a_token_can_be_another(data: st.DataObject) -> None:
    good = token(meant())
    place = data.draw(st.integers(0, len(good) - 2))  # of the last letter not every bit counts
    changed = good[:place] + data.draw(st.sampled_from("aZ0-_.")) + good[place + 1 :]
    assert (Tokens(SECRET, "", AUDIENCE, ISSUER).subject(changed) == "ann") == (changed == good)


def test_a_token_that_is_too_long_is_not_read_though_it_is_in_order() -> None:
    short = token(claims(pad=""))
    room = (LONGEST - len(short)) // 4 * 3
    fits, too_long = (token(claims(pad="x" * size)) for size in (room, room + 6))
    assert LONGEST - 4 < len(fits) <= LONGEST < len(too_long)
    assert Tokens(SECRET).subject(fits) == "ann"
    assert Tokens(SECRET).subject(too_long) is None


def test_without_an_audience_of_ours_a_token_for_somebody_is_not_for_us() -> None:
    tokens = Tokens(SECRET)
    assert tokens.subject(token(claims(iss=ISSUER))) == "ann"
    assert tokens.subject(token(claims(aud=AUDIENCE))) is None


@pytest.mark.parametrize("name", ["ann", "key:web", "ann@example.com", " ", "\u2028", "a" * 1000])
def test_a_subject_is_whatever_its_issuer_calls_it(name: str) -> None:
    assert Tokens(SECRET).subject(token(claims(sub=name))) == name


def test_what_is_no_text_is_nobodys_name() -> None:
    """JSON can name half of a surrogate pair, which no header, no log and no file could hold."""
    assert Tokens(SECRET).subject(token(claims(sub="a\ud800"))) is None


@pytest.mark.parametrize("kid", [None, "ES256"])
def test_two_keys_of_one_name_stop_the_start(tmp_path: Path, kid: str | None) -> None:
    """Only one of them would count."""
    path = tmp_path / "keys"
    path.write_text(jwks(jwk("RS256", kid=kid), jwk("ES256", kid=kid)))
    with pytest.raises(SettingsError, match="two of its keys have the same `kid`, or none"):
        Tokens("", str(path))


def test_a_secret_need_not_be_text() -> None:
    """As an environment may hold it."""
    raw = b"\xff\xfe" * 32
    tokens = Tokens(raw.decode("utf-8", "surrogateescape"))
    assert tokens.subject(made({"alg": "HS256"}, claims(), by_secret(raw))) == "ann"
    assert tokens.subject(token()) is None


@pytest.mark.parametrize("kid", [None, "ES256"])
def test_a_single_key_need_not_be_named(tmp_path: Path, kid: str | None) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(jwk("ES256", kid=kid)))
    tokens = Tokens("", str(path))
    assert tokens.subject(made({"alg": "ES256"}, claims(), by_key("ES256"))) == "ann"
    assert tokens.subject(made({"alg": "ES256"}, claims(), by_key("ES256", stranger()))) is None
    assert tokens.subject(issued("ES256", kid="another")) is None
    assert tokens.subject(token()) is None


def test_keys_that_are_not_for_us_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(jwk("RS256", kid="enc", alg="RSA-OAEP"), {"kty": "new"}, jwk("ES256")))
    tokens = Tokens("", str(path))
    assert tokens.subject(issued("ES256")) == "ann"
    assert tokens.subject(issued("RS256", kid="enc")) is None


SECRET_KEY = {"kty": "oct", "k": part(SECRET.encode())}
NO_KEYS: dict[str, str] = {
    "nothing": "",
    "no JSON": SECRET,
    "a list": json.dumps([SECRET_KEY]),
    "null": "null",
    "a key instead of a set": json.dumps(SECRET_KEY),
    "no key": jwks()[:9] + "]}",
    "keys that are none": json.dumps({"keys": {"a": SECRET_KEY}}),
    "a key without what makes one": jwks({"kty": "oct", "kid": SECRET}),
    "a key for no algorithm": jwks({**SECRET_KEY, "alg": "none"}),
    "a key for a list of algorithms": jwks({**SECRET_KEY, "alg": ["HS256"]}),
    "a key whose name is a list": jwks({**SECRET_KEY, "kid": [SECRET]}),
    "a key of an unknown kind": jwks({**SECRET_KEY, "kty": SECRET}),
    "a curve without a point": jwks({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": part(SECRET.encode())}),
    "brackets": "[" * 100_000,
    "digits": "9" * 5000,
}


@pytest.mark.parametrize("text", NO_KEYS.values(), ids=NO_KEYS)
def test_a_file_without_a_key_stops_the_start_and_is_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        Tokens("", str(path))
    assert caught.value.problems == (f"jwt_keys_file {path}: not a JWKS with a key that can be used",)


# Over HTTP

TOKENS = {"SIDESTREAM_API_KEYS": KEYS, "SIDESTREAM_JWT_SECRET": SECRET, "SIDESTREAM_JWT_COOKIE": COOKIE}
SHOWN: dict[str, tuple[int, str, Callable[[], dict[str, str]]]] = {
    "in the header": (200, "", lambda: bearer(token())),
    "in the cookie": (200, "", lambda: {"cookie": f"{COOKIE}={token()}"}),
    "in the cookie, among others": (200, "", lambda: {"cookie": f"a=1; {COOKIE}={token()}; b=2"}),
    "in the cookie, beside a key": (200, "", lambda: {"x-api-key": WEB, "cookie": f"{COOKIE}=x"}),
    "in the header, beside a cookie of before": (200, "", lambda: {**bearer(token()), "cookie": f"{COOKIE}=x"}),
    "in another cookie": (401, "", lambda: {"cookie": f"{COOKIE}2={token()}"}),
    "in a cookie in other letters": (401, "", lambda: {"cookie": f"{COOKIE.upper()}={token()}"}),
    "in the cookie, behind a wrong header": (401, "", lambda: {**bearer("x"), "cookie": f"{COOKIE}={token()}"}),
    "as a key": (401, "", lambda: {"x-api-key": token()}),
    "a key in the cookie": (401, "", lambda: {"cookie": f"{COOKIE}={WEB}"}),
    "in the URL": (401, f"&access_token={token()}&{COOKIE}={token()}&token={token()}", dict),
    "expired, in the cookie": (401, "", lambda: {"cookie": f"{COOKIE}={token(claims(exp=NOW - 1))}"}),
    "forged, in the cookie": (401, "", lambda: {"cookie": f"{COOKIE}={FORGED['none']()}"}),
    "a megabyte, in the header": (401, "", lambda: bearer("A" * 2**20)),
    "a megabyte, in the cookie": (401, "", lambda: {"cookie": f"{COOKIE}={'A' * 2**20}"}),
}


@pytest.mark.parametrize(("status", "query", "headers"), SHOWN.values(), ids=SHOWN)
def test_a_token_is_shown_in_a_header_or_in_its_cookie(
    status: int, query: str, headers: Callable[[], dict[str, str]]
) -> None:
    async def test() -> tuple[int, int]:
        async with serving(**TOKENS) as app:
            over_http = await ask(app, "GET", f"/chat/stream?message=Hi{query}", headers=headers())
            async with HandSocket(placed(app, *headers().items()), query[1:]) as socket:
                refused = socket.refused_with
        return over_http.status, refused[0] if refused else 200

    assert run_ahead(test()) == (status, status)


def test_without_a_cookie_named_none_is_looked_at() -> None:
    async def test() -> int:
        async with serving(SIDESTREAM_JWT_SECRET=SECRET) as app:
            headers = {"cookie": f"{COOKIE}={token()}; ={token()}"}
            return (await ask(app, "GET", "/v1/models", headers=headers)).status

    assert run_ahead(test()) == 401
