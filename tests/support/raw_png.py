"""PNGs that Pillow would not write."""

import struct
import zlib

GREY, RGB = 0, 2


def png(width, bits, colour_type, rows, first=b"", last=b""):
    """Return a PNG of ``rows`` of packed bytes, with chunks before and after the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + first + body + last + chunk(b"IEND", b"")


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
