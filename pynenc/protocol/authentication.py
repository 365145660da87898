"""How the two ends of a connection prove to each other that they know the key of the run directory."""

from __future__ import annotations

import hashlib

CHALLENGE_BYTES = 32
PROOF_BYTES = 64


def prove(key: bytes, challenge: bytes, side: bytes) -> bytes:
    """What only somebody with the key can answer to a challenge.

    The side keeps a proof of one end from being played back as one of the other.
    """
    return hashlib.blake2b(challenge, key=key, person=side, digest_size=PROOF_BYTES).digest()
