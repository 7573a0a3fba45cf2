"""Features are computed once and shared; whatever is damaged, foreign or half-written is never read."""

import errno
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import numbered_data
from processes import in_child
from torch import nn

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner import feature_store
from al_seg_env.learner.feature_store import FeatureStore
from al_seg_env.learner.frozen_encoder import FrozenEncoder
from al_seg_env.learner.preparation import Preparation

SIZE, IMAGES = (30, 42), 20
CONSTRUCTION = 1  # images encoded to learn the shapes


class Counting(nn.Module):
    """An encoder of two outputs that counts the images it sees."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.deep = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        x = self.conv(x)
        return [x, self.deep(x)]


def data(seed=0, fingerprint="of the test", count=IMAGES):
    made = numbered_data(count, SIZE, seed)
    if fingerprint is not None:
        made.fingerprint = fingerprint
    return made


def encoder(seed=0):
    made = FrozenEncoder(
        Counting(seed), "encoder", Preparation((0.5,) * 3, (0.5,) * 3, 4, torch.device("cpu"), torch.channels_last)
    )
    made.module.seen = 0
    return made


def store(cache=None, of=None, by=None, precision="float32"):
    return FeatureStore(Frames(data() if of is None else of), encoder() if by is None else by, precision, cache)


def contents(subject, images=range(IMAGES)):
    return [torch.cat([values.reshape(-1) for values in subject.maps(image)]) for image in images]


def equal(one, other):
    return all(map(torch.equal, one, other))


def files(cache):
    (folder,) = Path(cache).glob("features-*")
    return folder / "features.bin", folder / "checksums.bin"


@pytest.mark.parametrize("in_folder", [False, True])
def test_an_image_is_encoded_once(tmp_path, in_folder):
    subject = store(tmp_path if in_folder else None)
    first = contents(subject)
    assert equal(first, contents(subject))
    subject.prepare(range(IMAGES))
    assert subject.encoder.module.seen == IMAGES + CONSTRUCTION
    image = torch.from_numpy(subject.frames.read_image(3)).permute(2, 0, 1)[None]
    for stored, expected in zip(subject.maps(3), subject.encoder(image).maps, strict=True):
        assert torch.equal(stored, expected[0].permute(1, 2, 0))


def test_a_folder_is_not_made_again_and_equals_memory(tmp_path):
    first = contents(store(tmp_path))
    again = store(tmp_path)
    assert equal(contents(again), first)
    assert again.encoder.module.seen == CONSTRUCTION
    assert equal(contents(store()), first)


def test_images_are_not_kept_beside_their_features():
    subject = store()
    contents(subject)
    assert not subject.frames._images


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_rounds_what_is_stored_and_halves_it(precision):
    full, half = store(), store(precision=precision)
    assert 2 * half.bytes_per_image == full.bytes_per_image
    dtype = getattr(torch, precision)
    assert all(torch.equal(a.to(dtype), b) for a, b in zip(full.maps(5), half.maps(5), strict=True))


def test_a_flipped_byte_a_zeroed_part_and_exchanged_records_are_made_again(tmp_path):
    first = contents(store(tmp_path))
    features, checksums = files(tmp_path)
    size = features.stat().st_size // IMAGES
    content = bytearray(features.read_bytes())
    content[2 * size + 7] ^= 1
    content[5 * size : 6 * size] = bytes(size)
    content[7 * size : 8 * size], content[8 * size : 9 * size] = (
        content[8 * size : 9 * size],
        content[7 * size : 8 * size],
    )
    features.write_bytes(content)
    sums = np.fromfile(checksums, np.uint64)
    sums[[7, 8]] = sums[[8, 7]]  # checksums of the other's content do not help
    sums.tofile(checksums)
    again = store(tmp_path)
    assert equal(contents(again), first)
    assert again.encoder.module.seen == CONSTRUCTION + 4
    assert equal(contents(store(tmp_path)), first)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "deleted", "noise"])
def test_files_of_another_length_or_content_are_made_again(tmp_path, victim, damage):
    first = contents(store(tmp_path))
    path = files(tmp_path)[victim]
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "longer": content + content}[damage])
    assert equal(contents(store(tmp_path)), first)
    assert equal(contents(store(tmp_path)), first)


@pytest.mark.parametrize(
    "other",
    [
        {"of": data(fingerprint="of other data")},
        {"of": data(count=IMAGES + 1)},
        {"by": encoder(seed=1)},
        {"precision": "float16"},
    ],
)
def test_other_data_weights_and_precisions_have_other_folders(tmp_path, other):
    first = contents(store(tmp_path))
    different = store(tmp_path, **other)
    contents(different)
    assert different.encoder.module.seen >= IMAGES
    assert len(list(tmp_path.glob("features-*"))) == 2
    assert equal(contents(store(tmp_path)), first)


def test_files_that_changed_places_with_those_of_another_encoder_are_made_again(tmp_path):
    first, second = contents(store(tmp_path / "a")), contents(store(tmp_path / "b", by=encoder(seed=1)))
    for mine, other in zip(files(tmp_path / "a"), files(tmp_path / "b"), strict=True):
        mine.rename(tmp_path / "aside")
        other.rename(mine)
        (tmp_path / "aside").rename(other)
    assert equal(contents(store(tmp_path / "a")), first)
    assert equal(contents(store(tmp_path / "b", by=encoder(seed=1))), second)


def test_another_normalisation_or_version_is_another_folder(tmp_path, monkeypatch):
    contents(store(tmp_path), [0])
    other = FrozenEncoder(
        Counting(), "encoder", Preparation((0.4,) * 3, (0.5,) * 3, 4, torch.device("cpu"), torch.channels_last)
    )
    contents(store(tmp_path, by=other), [0])
    monkeypatch.setattr(feature_store, "STORE_VERSION", 0)
    contents(store(tmp_path), [0])
    assert len(list(tmp_path.glob("features-*"))) == 3


def test_data_without_a_fingerprint_cannot_be_told_from_others(tmp_path):
    with pytest.raises(ValueError, match="ArrayData has no fingerprint"):
        store(tmp_path, of=data(fingerprint=None))
    contents(store(of=data(fingerprint=None)))


def test_what_does_not_fit_into_memory_is_refused_before_anything_is_encoded(monkeypatch):
    subject = store()
    monkeypatch.setattr(feature_store, "available_memory", lambda: 5 * subject.bytes_per_image)
    with pytest.raises(MemoryError, match=r"of 20 images need .* memory has .* enough for 5 images; .* set cache"):
        subject.prepare(range(IMAGES))
    assert subject.encoder.module.seen == CONSTRUCTION
    subject.prepare(range(5))


def test_what_does_not_fit_on_the_disk_is_refused_with_what_would(tmp_path, monkeypatch):
    subject = store(tmp_path)
    usage = type("Usage", (), {"free": 3 * subject.bytes_per_image})
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"enough for 3 images; .* or use a cache on another disk") as caught:
        subject.prepare(range(IMAGES))
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_fills_while_the_store_is_made_keeps_what_is_there(tmp_path, monkeypatch):
    subject, written = store(tmp_path), []
    write = feature_store.write_maps

    def until_full(path, offset, content):
        if len(written) == 15:
            write(path, offset, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, offset, content)

    monkeypatch.setattr(feature_store, "write_maps", until_full)
    with pytest.raises(OSError, match="could not be written .* free space, or use a cache on another disk"):
        subject.prepare(range(IMAGES))
    monkeypatch.undo()
    again = store(tmp_path)
    assert equal(contents(again), contents(store()))
    assert again.encoder.module.seen == CONSTRUCTION + IMAGES - 7  # two writes each


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot be written .* make it writable, or use another folder"):
        store(tmp_path / "file").prepare([0])


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_pipe_or_folder_in_a_files_place_is_named(tmp_path, victim, put):
    contents(store(tmp_path))
    path = files(tmp_path)[victim]
    path.unlink()
    put(path)
    with pytest.raises(OSError, match=f"{path.name} is a folder, pipe or device, not a file"):
        contents(store(tmp_path))


def test_a_whole_store_is_read_without_writing(tmp_path, monkeypatch):
    first = contents(store(tmp_path))

    def refuse(*_):
        raise AssertionError("the folder was written to")

    monkeypatch.setattr(feature_store.FeatureFile, "writable", refuse)
    monkeypatch.setattr(feature_store, "write_maps", refuse)
    assert equal(contents(store(tmp_path)), first)


def test_features_that_are_not_finite_are_an_error():
    made = encoder()
    with torch.no_grad():
        made.module.deep.bias.fill_(1e6)
    with pytest.raises(FloatingPointError, match=r"image 'image 0': .*float16; use feature_precision='float32'"):
        store(by=made, precision="float16").prepare([0])


def test_a_store_is_shared_by_all_that_have_the_same_encoder():
    frames, made = Frames(data()), encoder()
    one = FeatureStore.shared(frames, made)
    assert FeatureStore.shared(frames, encoder()) is one
    assert FeatureStore.shared(frames, encoder(seed=1)) is not one
    assert FeatureStore.shared(Frames(data()), made) is not one


def test_a_store_sent_to_another_process_leaves_its_features_behind(tmp_path):
    subject = store(tmp_path)
    first = contents(subject)
    content = pickle.dumps(subject)
    assert len(content) < 2 * len(pickle.dumps((subject.frames, subject.encoder)))
    sent = pickle.loads(content)
    sent.encoder.module.seen = 0
    assert equal(contents(sent), first)
    assert sent.encoder.module.seen == 0


@pytest.mark.parametrize("after", [8, 9])
def test_a_process_killed_while_it_writes_leaves_nothing_wrong(tmp_path, after):
    def killed():
        torch.set_num_threads(1)
        write, writes = feature_store.write_maps, []

        def killing(path, offset, content):
            if len(writes) == after:
                write(path, offset, content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            writes.append(path)
            write(path, offset, content)

        feature_store.write_maps = killing
        store(tmp_path).prepare(range(IMAGES))

    assert in_child(killed) == -signal.SIGKILL
    again = store(tmp_path)
    assert equal(contents(again), contents(store()))
    assert again.encoder.module.seen == CONSTRUCTION + IMAGES - after // 2


def test_processes_that_make_one_store_share_the_work(tmp_path):
    forked = multiprocessing.get_context("fork")
    counts = forked.SimpleQueue()

    def making():
        torch.set_num_threads(1)
        subject = store(tmp_path)
        subject.prepare(range(IMAGES))
        counts.put(subject.encoder.module.seen)

    running = [forked.Process(target=making) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    seen = [counts.get() for _ in running]
    assert sum(seen) == 3 * CONSTRUCTION + IMAGES
    again = store(tmp_path)
    assert equal(contents(again), contents(store()))
    assert again.encoder.module.seen == CONSTRUCTION
