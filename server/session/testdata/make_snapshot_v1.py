"""Writes snapshot_v1.bin from the description at the top of server/session/snapshot.cc, without the server's code.

    python3 server/session/testdata/make_snapshot_v1.py > server/session/testdata/snapshot_v1.bin
"""

import hashlib
import struct
import sys

fingerprint = bytes(range(32))
layout_hash = 0x0123456789ABCDEF
position = 300
tokens = [(7 * p + 3) % 1000 for p in range(position)]
recent = [0] * 256
for p, token in enumerate(tokens):
    recent[p % 256] = token
undecoded = "€".encode()[:2]
data = struct.pack("<32f", *(i / 4 - 3 for i in range(32)))

head = struct.pack("<qiI", position, tokens[-1], len(recent)) + struct.pack("<256i", *recent)
head += struct.pack("<I", len(undecoded)) + undecoded
header_length = 8 + 4 + 4 + 32 + 8 + len(head) + 8
body = b"PLMPSTAT" + struct.pack("<II", 1, header_length) + fingerprint + struct.pack("<Q", layout_hash) + head
body += struct.pack("<Q", len(data)) + data
sys.stdout.buffer.write(body + hashlib.sha256(body).digest())
print("digest", hashlib.sha256(head + data).hexdigest(), file=sys.stderr)
