"""Makes keys and JSON Web Tokens for tests/jwt.rs, with PyJWT, which shares no code with the server.

Writes key files into the directory given as the argument. Then reads one request per line from stdin, a JSON object, and
replies with one line of JSON: {"key", "claims"} with a token, {"hostile": now} with a list of names and bad tokens.
"""
import base64, hashlib, hmac, json, pathlib, sys

import jwt
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils, x25519
from cryptography.hazmat.primitives import hashes

DIRECTORY = pathlib.Path(sys.argv[1])
SECRETS = {"hs": b"0123456789abcdef0123456789abcdef", "hs2": b"another secret of more than 32 bytes"}
KEYS = {
    "rs": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "es": ec.generate_private_key(ec.SECP256R1()),
    "es2": ec.generate_private_key(ec.SECP256R1()),
    "ed": ed25519.Ed25519PrivateKey.generate(),
}
OTHERS = {  # keys that the server must reject at start
    "rsa-1024": rsa.generate_private_key(public_exponent=65537, key_size=1024),
    "p-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "x25519": x25519.X25519PrivateKey.generate(),
}
ALGORITHMS = {"hs": "HS256", "hs2": "HS256", "rs": "RS256", "es": "ES256", "es2": "ES256", "ed": "EdDSA"}


def public(key, encoding=s.Encoding.PEM, form=s.PublicFormat.SubjectPublicKeyInfo):
    return key.public_key().public_bytes(encoding, form)


def private(key, form=s.PrivateFormat.PKCS8):
    return key.private_bytes(s.Encoding.PEM, form, s.NoEncryption())


def write_files():
    files = {f"{name}.key": secret for name, secret in SECRETS.items()}
    files |= {f"{name}.key": public(key) for name, key in (KEYS | OTHERS).items()}
    rs, es = KEYS["rs"], KEYS["es"]
    files |= {
        "hs-newline.key": SECRETS["hs"] + b"\n",
        "hs-crlf.key": SECRETS["hs"] + b"\r\n",
        "hs-31.key": SECRETS["hs"][:31],
        "hs-31-newline.key": SECRETS["hs"][:31] + b"\n",
        "hs-two-newlines.key": SECRETS["hs"][:30] + b"\n\n",
        "empty.key": b"",
        "rs-pkcs1.key": public(rs, form=s.PublicFormat.PKCS1),
        "rs-text.key": b"the key of the issuer\n" + public(rs),
        "rs-private.key": private(rs),
        "rs-private-pkcs1.key": private(rs, s.PrivateFormat.TraditionalOpenSSL),
        "es-private.key": private(es),
        "es-private-sec1.key": private(es, s.PrivateFormat.TraditionalOpenSSL),
        "ed-private.key": private(KEYS["ed"]),
        "two.key": public(rs) + public(es),
        "rs-der.key": public(rs, s.Encoding.DER),
        "es-der.key": public(es, s.Encoding.DER),
        "ed-der.key": public(KEYS["ed"], s.Encoding.DER),
        "rs-cut.key": public(rs)[:200] + b"\n-----END PUBLIC KEY-----\n",
        "nothing.key": b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        "label.key": public(rs).replace(b"PUBLIC KEY", b"CERTIFICATE"),
        "begin.key": b"-----BEGIN, and 32 bytes or more follow",
        "ed-short.key": b"-----BEGIN PUBLIC KEY-----\nMBIwBQYDK2VwAwkAAAAAAAAAAAA=\n-----END PUBLIC KEY-----\n",
    }
    for name, content in files.items():
        (DIRECTORY / name).write_bytes(content)


def make(key, claims, headers=None):
    return jwt.encode(claims, SECRETS.get(key) or KEYS[key], ALGORITHMS[key], headers=headers)


def b64(data):
    data = data if isinstance(data, bytes) else data.encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(algorithm, signed):
    """Signs with the server's own key for the algorithm, so that only the content is invalid."""
    if algorithm == "HS256":
        return hmac.digest(SECRETS["hs"], signed, "sha256")
    if algorithm == "RS256":
        return KEYS["rs"].sign(signed, padding.PKCS1v15(), hashes.SHA256())
    if algorithm == "ES256":
        r, t = utils.decode_dss_signature(KEYS["es"].sign(signed, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + t.to_bytes(32, "big")
    return KEYS["ed"].sign(signed)


def raw(header, payload, algorithm="HS256", secret=None):
    """Returns a token with exactly this header and payload, signed by `secret` or by the server's own key."""
    header = header if isinstance(header, (str, bytes)) else json.dumps(header)
    payload = payload if isinstance(payload, (str, bytes)) else json.dumps(payload)
    signed = f"{b64(header)}.{b64(payload)}".encode()
    signature = hmac.digest(secret, signed, "sha256") if secret else sign(algorithm, signed)
    return f"{signed.decode()}.{b64(signature)}"


def hostile(now):
    good = {"sub": "alice", "exp": now + 600}
    rows = []

    def add(name, token):
        rows.append([name, token])

    def claims(name, **changes):
        for algorithm in ["HS256"]:
            add(f"claims: {name}", raw({"alg": algorithm}, {k: v for k, v in (good | changes).items() if v is not ...}))

    # `alg` must be exactly the name of a key's algorithm (RFC 7515 §4.1.1).
    unsigned = f"{b64(json.dumps({'alg': 'none', 'typ': 'JWT'}))}.{b64(json.dumps(good))}"
    for spelling in ["none", "None", "NONE", "nOnE", "none ", "", "null"]:
        signed = f"{b64(json.dumps({'alg': spelling}))}.{b64(json.dumps(good))}"
        add(f"alg {spelling!r}, no signature", signed + ".")
        add(f"alg {spelling!r}, signed", raw({"alg": spelling}, good))
    add("alg none without the last dot", unsigned)
    add("alg none with a signature of nothing", unsigned + "." + b64(b"\0"))
    for spelling in ["hs256", "Hs256", "HS256 ", "HS-256", "HMAC"]:
        add(f"alg {spelling!r}", raw({"alg": spelling}, good))
    for name in ["HS384", "HS512"]:
        add(f"alg {name}", jwt.encode(good, SECRETS["hs"] * 2, name))
    for name in ["RS384", "RS512", "PS256", "PS384", "PS512"]:
        add(f"alg {name} by the RSA key", jwt.encode(good, KEYS["rs"], name))
    add("alg ES384", jwt.encode(good, OTHERS["p-384"], "ES384"))
    add("alg ES256K", jwt.encode(good, OTHERS["secp256k1"], "ES256K"))
    for header in [{}, {"typ": "JWT"}, {"alg": None}, {"alg": 1}, {"alg": ["HS256"]}, {"alg": True}]:
        add(f"header {header}", raw(header, good))
    # Algorithm confusion: a public key as the HS256 secret.
    for name, key in KEYS.items():
        for kind, secret in {
            "PEM": public(key), "PEM without newline": public(key).rstrip(), "DER": public(key, s.Encoding.DER),
        }.items():
            add(f"HS256 with the {kind} of {name}", raw({"alg": "HS256"}, good, secret=secret))
    for name, form in {"raw Ed25519 key": (KEYS["ed"], s.PublicFormat.Raw), "EC point": (KEYS["es"], s.PublicFormat.UncompressedPoint)}.items():
        encoding = s.Encoding.Raw if form[1] == s.PublicFormat.Raw else s.Encoding.X962
        add(f"HS256 with the {name}", raw({"alg": "HS256"}, good, secret=public(form[0], encoding, form[1])))
    add("HS256 with the PKCS #1 DER", raw({"alg": "HS256"}, good, secret=public(KEYS["rs"], s.Encoding.DER, s.PublicFormat.PKCS1)))
    for secret in [b"\0", b"secret", b"0123456789abcdef0123456789abcde", b"0123456789abcdef0123456789abcdef\n"]:
        add(f"HS256 with the secret {secret}", raw({"alg": "HS256"}, good, secret=secret))
    # Signed with one algorithm, while the header names another.
    for signer in ["HS256", "RS256", "ES256", "EdDSA"]:
        for name in ["HS256", "RS256", "ES256", "EdDSA"]:
            if name != signer:
                add(f"signed as {signer}, named {name}", raw({"alg": name}, good, signer))
    # Keys that the token itself supplies or refers to.
    attacker = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = attacker.public_key().public_numbers()
    jwk = {"kty": "RSA", "e": b64(numbers.e.to_bytes(3, "big")), "n": b64(numbers.n.to_bytes(256, "big"))}
    for extra in [{"jwk": jwk}, {"jku": "http://127.0.0.1:9/jwks.json"}, {"x5u": "http://127.0.0.1:9/x"}, {"x5c": [b64(public(attacker, s.Encoding.DER))]},
                  {"kid": "../../../../dev/null"}, {"kid": "' OR 1=1 --"}]:
        add(f"signed by an attacker's key, header {list(extra)}", jwt.encode(good, attacker, "RS256", headers=extra))
    add("signed by an attacker's EC key", jwt.encode(good, ec.generate_private_key(ec.SECP256R1()), "ES256"))
    add("signed by an attacker's Ed25519 key", jwt.encode(good, ed25519.Ed25519PrivateKey.generate(), "EdDSA"))
    # Malformed `crit` headers, and `crit` headers that list extensions unknown to the server (RFC 7515 §4.1.11).
    for extra in [{"crit": ["exp"], "exp": 0}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"crit": None}, {"crit": "x"}]:
        add(f"header {extra}", raw({"alg": "HS256"} | extra, good))
    add("header: alg twice", raw('{"alg":"none","alg":"HS256"}', good))
    add("header: kid twice", raw('{"alg":"HS256","kid":"a","kid":"b"}', good))
    add("header: alg twice, one escaped", raw('{"alg":"HS256","\\u0061lg":"HS256"}', good))
    for header in ["[]", "null", '"HS256"', "1", "", "{", '{"alg":"HS256"} x', b'{"alg":"HS256","x":"\xff"}', '\ufeff{"alg":"HS256"}', "[" * 500]:
        add(f"header text {header[:30]!r}", raw(header, good))
    # Invalid `exp` and `nbf` claims.
    claims("expired", exp=now - 60)
    claims("expired by 6 seconds", exp=now - 6)
    claims("exp 0", exp=0)
    claims("exp negative", exp=-1)
    claims("exp hugely negative", exp=-1e300)
    claims("exp a string", exp=str(now + 600))
    claims("exp null", exp=None)
    claims("exp true", exp=True)
    claims("exp an array", exp=[now + 600])
    claims("exp an object", exp={"$numberLong": "9999999999"})
    claims("exp missing", exp=...)
    for number in ["NaN", "Infinity", "-Infinity", "1e309", "-1e309", "0x7fffffffffff", "+9999999999", "09999999999", "9999999999.", "1" + "0" * 400, "1_000_000_000_0"]:
        add(f"exp {number[:20]}", raw({"alg": "HS256"}, f'{{"sub":"alice","exp":{number}}}'))
    claims("nbf in the future", nbf=now + 600)
    claims("nbf huge", nbf=1e300)
    claims("nbf a string", nbf=str(now - 600))
    claims("nbf null", nbf=None)
    claims("nbf an object", nbf={})
    # Invalid `sub` and `rooms` claims, and repeated claims.
    claims("sub missing", sub=...)
    for subject in [None, 1, True, [], ["alice"], {}, "", " ", "\u200b", "\u3164", "a" * 33, "é" * 33, "\U0001f600" * 33, "a\u0000b", "a\nb", "a\u202eb", "a\u2028b"]:
        claims(f"sub {str(subject)[:10]!r}", sub=subject)
    for rooms in [None, "general", 1, True, {}, {"general": True}, [1], [None], [["general"]], ["general", None], [""], ["a" * 65], ["a\u202eb"]]:
        claims(f"rooms {str(rooms)[:20]}", rooms=rooms)
    for name in ["exp", "sub", "iss", "x"]:
        first, second = (now + 600, now + 6000) if name == "exp" else ("alice", "alice")
        rest = json.dumps({k: v for k, v in good.items() if k != name})[1:]
        add(f"repeated claim {name}", raw({"alg": "HS256"}, f'{{"{name}":{json.dumps(first)},"{name}":{json.dumps(second)},{rest}'))
    add("repeated claim, one escaped", raw({"alg": "HS256"}, f'{{"sub":"alice","s\\u0075b":"bob","exp":{now + 600}}}'))
    add("repeated claim, the second null", raw({"alg": "HS256"}, f'{{"sub":"alice","exp":{now + 600},"exp":null}}'))
    # Payloads that are not valid JWT claims.
    for payload in ["", "[]", "null", "1", '"alice"', "{", "{}", json.dumps(good) + "x", json.dumps(good) * 2, b"\xff\xfe", "\ufeff" + json.dumps(good),
                    b'{"sub":"a\xff","exp":9999999999}', json.dumps(good).encode("utf-16"), json.dumps(good)[:-1] + ",}", "{'sub':'alice'}",
                    '{"sub":"\\ud800","exp":9999999999}', "[" * 1000, json.dumps(good)[:-1] + ',"x":' + "[" * 500 + "]" * 500 + "}"]:
        add(f"payload {payload[:20]!r}", raw({"alg": "HS256"}, payload))
    token = make("hs", good)
    add("nested JWT", raw({"alg": "HS256", "cty": "JWT"}, token))
    add("nested JWT as a JSON string", raw({"alg": "HS256", "cty": "JWT"}, json.dumps(token)))
    add("JWE", ".".join([b64('{"alg":"dir","enc":"A256GCM"}'), "", b64(b"\0" * 12), b64(b"\0" * 40), b64(b"\0" * 16)]))
    add("JWS in JSON form", json.dumps({"protected": token.split(".")[0], "payload": token.split(".")[1], "signature": token.split(".")[2]}))
    # Tokens with missing, extra or altered parts (header, payload, signature), and tokens with an invalid encoding.
    header, payload, signature = token.split(".")
    add("four parts", token + "." + signature)
    add("a dot at the end", token + ".")
    add("a dot at the start", "." + token)
    add("two dots in a row", f"{header}..{payload}.{signature}")
    add("no signature", f"{header}.{payload}.")
    add("two parts", f"{header}.{payload}")
    add("one part", header)
    add("only dots", "..")
    add("no header", f".{payload}.{signature}")
    add("no payload", f"{header}..{signature}")
    add("truncated signature", token[:-2])
    add("signature cut to 16 bytes", f"{header}.{payload}.{b64(base64.urlsafe_b64decode(signature + '==')[:16])}")
    add("signature of zeros", f"{header}.{payload}.{b64(bytes(32))}")
    add("longer signature", f"{header}.{payload}.{b64(base64.urlsafe_b64decode(signature + '==') + bytes(1))}")
    add("signature of another token", f"{header}.{payload}.{make('hs', good | {'sub': 'bob'}).split('.')[2]}")
    add("payload of another token", f"{header}.{b64(json.dumps(good | {'sub': 'root'}))}.{signature}")
    for at in range(0, len(token), len(token) // 12):
        other = "A" if token[at] != "A" else "B"
        if token[at] != ".":
            add(f"character {at} changed", token[:at] + other + token[at + 1:])
    stray = signature[:-1] + {"A": "B", "E": "F", "I": "J", "M": "N", "Q": "R", "U": "V", "Y": "Z", "c": "d", "g": "h", "k": "l", "o": "p", "s": "t", "w": "x", "0": "1", "4": "5", "8": "9"}[signature[-1]]
    add("stray bits after the signature", f"{header}.{payload}.{stray}")
    add("padding after the signature", token + "=")
    add("padding after the payload", f"{header}.{payload}=.{signature}")
    add("standard base64", raw({"alg": "HS256", "x": "???>>>"}, good).replace("_", "/").replace("-", "+"))
    for space in [" ", "\t", "\n", "\r\n", "\0", "\u00a0", "\ufeff", "\u200b"]:
        add(f"{space!r} before", space + token)
        add(f"{space!r} after", token + space)
        add(f"{space!r} inside", f"{header}.{space}{payload}.{signature}")
    add("percent signs", f"{header}%2e{payload}%2e{signature}")
    add("Bearer inside", "Bearer " + token)
    add("the secret itself", SECRETS["hs"].decode())
    # Add an ES256 signature in DER instead of the JWS format (RFC 7518 §3.4), and signatures with out-of-range numbers.
    signed = f"{b64(json.dumps({'alg': 'ES256'}))}.{b64(json.dumps(good))}"
    add("ES256 signature in DER", f"{signed}.{b64(KEYS['es'].sign(signed.encode(), ec.ECDSA(hashes.SHA256())))}")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for r, t in [(0, 0), (0, 1), (1, 0), (order, 1), (1, order), (order, order)]:
        add(f"ES256 with r={r % 9} s={t % 9}", f"{signed}.{b64(r.to_bytes(32, 'big') + t.to_bytes(32, 'big'))}")
    add("RS256 signature with zeros in front", (lambda t: f"{t[0]}.{t[1]}.{b64(bytes(1) + base64.urlsafe_b64decode(t[2] + '=='))}")(make("rs", good).split(".")))
    add("RS256 signature 1", f"{b64(json.dumps({'alg': 'RS256'}))}.{b64(json.dumps(good))}.{b64(bytes(255) + bytes([1]))}")
    add("EdDSA signature of zeros", f"{b64(json.dumps({'alg': 'EdDSA'}))}.{b64(json.dumps(good))}.{b64(bytes(64))}")
    # Large tokens that still fit in a request head.
    add("large payload, bad signature", f"{header}.{b64(json.dumps(good | {'x': 'x' * 4000}))}.{signature}")
    add("many claims, one repeated", raw({"alg": "HS256"}, json.dumps(good)[:-1] + "," + ",".join(f'"{n}":0' for n in range(500)) + ',"7":0}'))
    add("many dots", "." * 4000)
    return rows


write_files()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "hostile" in request:
        reply = hostile(request["hostile"])
    elif "payload" in request:  # an exact payload, with the server's own key
        reply = raw({"alg": "HS256"}, request["payload"])
    else:
        reply = make(request["key"], request["claims"], request.get("headers"))
    print(json.dumps(reply), flush=True)
