"""Folders whose files are damaged, one after another, each in several ways."""

import shutil
import warnings

from experiments import contents


def exchange(path, other):
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swap_within(path):
    others = [other for other in sorted(path.parent.iterdir()) if other.is_file() and other.name != ".lock"]
    exchange(path, others[-1])


def swap_with_one_elsewhere(path):
    """Exchange a file with one of its name, or at least of its kind, in another folder."""
    root = next(parent for parent in path.parents if parent.parent.name == "copy")
    same_name = [other for other in sorted(root.rglob(path.name)) if other.read_bytes() != path.read_bytes()]
    same_kind = [other for other in sorted(root.rglob(f"*{path.suffix}")) if other != path]
    exchange(path, (same_name or same_kind or [path])[-1])


def change_a_digit(path):
    content = bytearray(path.read_bytes())
    at = next((i for i in reversed(range(len(content))) if chr(content[i]).isdigit()), 0)
    content[at] = content[at] ^ 1
    path.write_bytes(content)


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "changed": change_a_digit,
    "duplicated": lambda path: shutil.copy(path, path.with_name(f"result-3{path.suffix}")),
    "swapped within its folder": swap_within,
    "swapped with one elsewhere": swap_with_one_elsewhere,
}


def walk(folder, scratch, damage, use):
    """Damage a copy of a folder, each of its files in turn, and use it.

    Args:
        folder: The folder.
        scratch: Folder for the copy, which has the same name.
        damage: One of :data:`DAMAGES`.
        use: Called with the copy; returns what must be the same in spite of the damage.

    Yields:
        The name of the file, what ``use`` returned, and the message if it refused. A message names a file that was
        touched.
    """
    undamaged = contents(folder)
    for name in undamaged:
        copy = scratch / "copy" / folder.name
        shutil.copytree(folder, copy)
        DAMAGES[damage](copy / name)
        touched = {other for other, content in contents(copy).items() if undamaged.get(other) != content} | {name}
        found = message = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = use(copy)
        except (ValueError, OSError) as error:
            message = str(error)
            assert any(other in message for other in touched), (name, message)
        yield name, found, message
        shutil.rmtree(copy.parent)
