"""Files that stay intact if a process is killed or a disk is full, and that are safe to read from any source.

:func:`replacing` writes a file atomically. :func:`save_tree` and :func:`load_tree` store nested arrays and plain values
as safetensors and json: reading such a file executes nothing, and a checksum detects damage. :func:`open_image` opens
images of known formats only. :mod:`al_seg_env.storage.validation` checks the values themselves, and the arguments of
all packages.
"""

from al_seg_env.storage.atomic import (
    remove_unfinished,
    replacing,
    unfinished_name,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)
from al_seg_env.storage.comparison import differences
from al_seg_env.storage.csv_values import parse_float, parse_int
from al_seg_env.storage.images import open_image, write_png
from al_seg_env.storage.locking import folder_lock, short_lock
from al_seg_env.storage.regular_files import read_json, require_file, well_formed
from al_seg_env.storage.tree import (
    FILE_VERSION,
    PortableTree,
    load_tree,
    pack_tree,
    save_tree,
    tree_digest,
    unpack_tree,
)

__all__ = [
    "FILE_VERSION",
    "PortableTree",
    "differences",
    "folder_lock",
    "load_tree",
    "open_image",
    "pack_tree",
    "parse_float",
    "parse_int",
    "read_json",
    "remove_unfinished",
    "replacing",
    "require_file",
    "save_tree",
    "short_lock",
    "tree_digest",
    "unfinished_name",
    "unpack_tree",
    "well_formed",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_png",
    "write_text",
]
