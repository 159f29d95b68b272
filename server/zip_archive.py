"""A zip archive of open files as parts of a response: nothing is copied, and its length is known before it is sent."""

from __future__ import annotations

import struct
from typing import NamedTuple

from server.parts import Part

# Layouts and numbers of APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
VERSION, VERSION64 = 20, 45
MADE_ON_UNIX = 3 << 8
UTF8_NAMES = 0x800
STORED = 0
MIDNIGHT, FIRST_OF_1980 = 0, 1 << 5 | 1  # the same bytes whenever they are sent
READABLE_FILE = 0o100644 << 16
MOST_32, MOST_16 = (1 << 32) - 1, (1 << 16) - 1


class Member(NamedTuple):
    """A file of the archive, stored as it is."""

    name: str
    part: Part
    crc32: int


def zip_parts(members: list[Member]) -> list[Part]:
    """The archive: every member behind its header, then the directory. Larger than 4 GiB it is a zip64 archive."""
    parts: list[Part] = []
    directory, offset = b"", 0
    for member in members:
        header = _local_header(member)
        directory += _directory_entry(member, offset)
        parts += [header, member.part]
        offset += len(header) + len(member.part)

    return [*parts, directory + _end(len(members), len(directory), offset)]


def _common(member: Member, *, is_64: bool, size: int) -> bytes:
    """What the header of a member and its entry in the directory share, up to the length of its name."""
    when = (MIDNIGHT, FIRST_OF_1980)
    sizes = (member.crc32, size, size, len(member.name.encode()))
    return struct.pack("<5H3IH", *(VERSION64 if is_64 else VERSION, UTF8_NAMES, STORED, *when), *sizes)


def _extra64(*values: int) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _local_header(member: Member) -> bytes:
    size = len(member.part)
    is_64 = size >= MOST_32
    extra = _extra64(size, size) if is_64 else b""
    fixed = _common(member, is_64=is_64, size=min(size, MOST_32))
    return LOCAL + fixed + struct.pack("<H", len(extra)) + member.name.encode() + extra


def _directory_entry(member: Member, offset: int) -> bytes:
    size = len(member.part)
    values = ([size, size] if size >= MOST_32 else []) + ([offset] if offset >= MOST_32 else [])
    extra = _extra64(*values)
    fixed = _common(member, is_64=bool(values), size=min(size, MOST_32))
    made_by = struct.pack("<H", MADE_ON_UNIX | VERSION64)
    no_comment_on_first_disk = (0, 0, 0)
    rest = struct.pack("<4H2I", len(extra), *no_comment_on_first_disk, READABLE_FILE, min(offset, MOST_32))
    return CENTRAL + made_by + fixed + rest + member.name.encode() + extra


def _end(count: int, length: int, offset: int) -> bytes:
    """The end of the directory, which begins at `offset`; with the zip64 records if a number is too large for it."""
    this_disk = (0, 0)
    end64 = b""
    if offset >= MOST_32 or count >= MOST_16:
        versions = (MADE_ON_UNIX | VERSION64, VERSION64)
        place = (count, count, length, offset)
        end64 = END64 + struct.pack("<Q2H2I4Q", 44, *versions, *this_disk, *place)
        end64 += LOCATOR64 + struct.pack("<IQI", 0, offset + length, 1)
    place = (min(count, MOST_16), min(count, MOST_16), length, min(offset, MOST_32))
    return end64 + END + struct.pack("<4H2IH", *this_disk, *place, 0)
