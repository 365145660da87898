"""How the two ends of a connection prove to each other that they know the key of the run directory."""

from __future__ import annotations

try:
    # What hashlib and hmac give, without OpenSSL, which takes each process 5 ms to load.
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef]

CHALLENGE_BYTES = 32
PROOF_BYTES = 64


def prove(key: bytes, challenge: bytes, side: bytes) -> bytes:
    """What only somebody with the key can answer to a challenge.

    The side keeps a proof of one end from being played back as one of the other.
    """
    return blake2b(challenge, key=key, person=side, digest_size=PROOF_BYTES).digest()


def is_proof(proof: bytes, key: bytes, challenge: bytes, side: bytes) -> bool:
    """Whether an answer to a challenge is that of somebody with the key."""
    return compare_digest(proof, prove(key, challenge, side))
