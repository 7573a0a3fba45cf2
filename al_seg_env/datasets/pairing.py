"""Finding image files in folders, and pairing images with masks by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from al_seg_env.storage.validation import check, check_names

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""The suffixes of image files, in lower or upper case."""


def find_images(folder: Path, suffix: str = "") -> dict[str, list[Path]]:
    """Return the image files anywhere below ``folder`` by key, in order of the keys.

    A key is the path from ``folder`` without the file's suffix and without ``suffix``, with ``/`` between its parts.
    Files whose stem does not end in ``suffix``, hidden files and files of other types are ignored.

    Raises:
        OSError: If a folder cannot be listed.
        ValueError: If links lead to the same folder twice.
    """
    found: dict[str, list[Path]] = {}
    for path in _files_below(folder):
        stem = path.stem.removesuffix(suffix)
        if stem and path.suffix.lower() in SUFFIXES and path.stem.endswith(suffix):
            found.setdefault(path.relative_to(folder).with_name(stem).as_posix(), []).append(path)
    return dict(sorted(found.items()))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder`` that is neither a folder nor hidden; links are followed."""
    folders, seen = [folder], dict[tuple[int, int], Path]()
    for parent in folders:  # grows during the loop
        try:
            entries = [(path, path.is_dir()) for path in sorted(parent.iterdir())]
            stat = parent.stat()
        except OSError as error:
            raise OSError(f"the folder {parent} can't be listed ({error}); repair it, or allow reading it") from error
        # A link to a parent folder would never end, and any other link would find images twice.
        if (first := seen.setdefault((stat.st_dev, stat.st_ino), parent)) is not parent:
            raise ValueError(f"{parent} and {first} are the same folder; remove the link that makes them so")
        visible = [entry for entry in entries if not entry[0].name.startswith(".")]
        folders += [path for path, is_folder in visible if is_folder]
        yield from (path for path, is_folder in visible if not is_folder)


def pair_files(
    images: Path, masks: Path, *, image_suffix: str = "", mask_suffix: str = "", unlabelled: bool = False
) -> dict[str, tuple[Path, Path | None]]:
    """Return ``(image, mask)`` for each key (see :func:`find_images`) below two folders, in order.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        image_suffix: Suffix of the stems of images; files without it are ignored.
        mask_suffix: Suffix of the stems of masks; files without it are ignored.
        unlabelled: Whether images without a mask are allowed; their mask is ``None``. The folder of masks may then be
            missing.

    Raises:
        ValueError: If there are no images, or if images or masks have no partner or several. The message names all of
            them.
    """
    of_images = find_images(images, image_suffix)
    of_masks = find_images(masks, mask_suffix) if masks.exists() or not unlabelled else {}
    if not of_images:
        named = f" whose stem ends in {image_suffix!r}" if image_suffix else ""
        raise ValueError(f"no images{named} in {images}; expected files with one of {', '.join(SUFFIXES)}")
    unpaired = [f"{of_images[k][0]} has no mask" for k in of_images if k not in of_masks and not unlabelled]
    unpaired += [f"{of_masks[k][0]} has no image" for k in of_masks if k not in of_images]
    several = [files for files in (*of_images.values(), *of_masks.values()) if len(files) > 1]
    twice = [f"{' and '.join(map(str, files))} have the same stem" for files in several]
    if unpaired or twice:
        expected = (
            f"Expected one mask named like the image{f' plus {mask_suffix!r}' if mask_suffix else ''}; add, rename or "
            "remove files, or allow images without a mask (ImageFolder: missing_masks='unlabelled')"
        )
        raise ValueError(
            f"images in {images} and masks in {masks} do not pair: {listed([*unpaired, *twice])}. "
            + (expected if unpaired else "Rename one of them")
        )
    return {key: (of_images[key][0], of_masks[key][0] if key in of_masks else None) for key in of_images}


def require_folders(root: Path, folders: Sequence[str], layout: str) -> None:
    """Raise a ValueError that names the ``folders`` that ``root`` lacks, and the expected ``layout``."""
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
        found = f"it holds {listed(there)}" if there else "it is empty or not a folder itself"
        raise ValueError(f"{root} lacks {', '.join(missing)} ({found}); expected {layout}")


def apart(images: Path, masks: Path) -> None:
    """Raise a ValueError if images and masks lie in one folder, or one in the other, and would pass for each other."""
    a, b = images.resolve(), masks.resolve()
    if masks.is_dir() and (a == b or a in b.parents or b in a.parents):
        found = "are the same folder" if a == b else "lie in each other"
        raise ValueError(f"the images in {images} and the masks in {masks} {found}; move them to two, side by side")


def check_partitions(partitions: Sequence[str], example: Sequence[str], ending: str = "") -> dict[str, str]:
    """Return the names of partitions by what they are called without ``ending``, or raise a ValueError."""
    names = check_names("partitions", partitions, example)
    keys = [name.removesuffix(ending) for name in names]
    without = f", without their ending {ending!r}" if ending else ""
    check("partitions", partitions, len(set(keys)) == len(keys), f"each name only once{without}")
    return dict(zip(keys, names, strict=True))


def listed(items: Sequence[object], limit: int = 20) -> str:
    """Return a text with the first ``limit`` of ``items`` and the number of the others, for an error message."""
    texts = [text if len(text) <= 1000 else f"{text[:500]}...{text[-500:]}" for text in map(str, items[:limit])]
    return "; ".join(texts) + (f"; and {len(items) - limit} more" if len(items) > limit else "")
