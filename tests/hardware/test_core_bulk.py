"""The native moves stay inside of their buffers, whatever they are asked for."""

import mmap
import random
import threading

import pytest

SIZE = 640


def buffer(count: int, key: int = 3) -> bytearray:
    data = bytearray(count * SIZE)
    for index in range(count):
        data[index * SIZE + 512] = key
    return data


def aligned(size: int) -> memoryview:
    """Memory at the start of a page, past the caches of which lines can be written."""
    return memoryview(mmap.mmap(-1, size))


def gather(core, source, classes, destination, *, count=4, stride=SIZE, extent=SIZE, in_order=True, **more):
    allowed, key_mask = (1 << 63) - 1, 3
    return core.gather(
        source, stride, count, 0, allowed, key_mask, False, extent, classes, destination, in_order, **more
    )


def row(key=3, start=0, step=64, limit=4, record=bytes(64), moves=((0, 0, 64),)):
    return key, start, step, limit, record, list(moves)


BAD_ROWS = {
    "a move from before the image": row(moves=[(-1, 0, 8)]),
    "a move from behind the image": row(moves=[(SIZE - 7, 0, 8)]),
    "a move to before the record": row(moves=[(0, -1, 8)]),
    "a move to behind the record": row(moves=[(0, 57, 8)]),
    "an empty move": row(moves=[(0, 0, 0)]),
    "an endless move": row(moves=[(0, 0, 1 << 62)]),
    "records behind the destination": row(start=1),
    "too many records": row(limit=5),
    "records too far apart": row(step=1 << 62),
    "records that overlap": row(step=63),
    "records that start before": row(start=-1),
    "records that do not end": row(limit=1 << 62),
    "an empty record": row(record=b"", moves=[]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("stream", [0, 1])
def test_a_class_that_leaves_its_buffers_is_refused(core, name, stream):
    destination = bytearray(4 * 64)
    with pytest.raises(ValueError):
        gather(core, buffer(4), [BAD_ROWS[name]], destination, stream=stream)
    assert destination == bytes(4 * 64)


@pytest.mark.parametrize(
    "numbers",
    [
        {"count": 5},
        {"stride": SIZE + 1},
        {"stride": 575},
        {"stride": -1},
        {"count": -1},
        {"extent": SIZE + 1},
        {"extent": 575},
        {"count": 1 << 62},
        {"stride": 1 << 62},
        {"extent": -1},
    ],
)
def test_images_that_reach_beyond_the_buffer_are_refused(core, numbers):
    with pytest.raises(ValueError):
        gather(core, buffer(4), [row(moves=[(0, 0, 8)])], bytearray(256), **numbers)


@pytest.mark.parametrize(
    ("stride", "count"), [(SIZE, 5), (575, 4), (-1, 4), (SIZE, -1), (1 << 62, 4), (SIZE, 1 << 62)]
)
def test_counting_stays_inside_too(core, stride, count):
    with pytest.raises(ValueError):
        core.classify(buffer(4), stride, count, 0, 3, 3, False)


def test_a_class_that_occurs_twice_and_rows_that_are_none(core):
    with pytest.raises(ValueError):
        gather(core, buffer(4), [row(), row()], bytearray(256))
    for bad in (5, (3,), row(moves=[5]), row(moves=[(1, 2)])):
        with pytest.raises(TypeError):
            gather(core, buffer(4), [bad], bytearray(256))


def test_buffers_that_overlap_or_cannot_be_written(core):
    source = buffer(4)
    with pytest.raises(ValueError):
        gather(core, source, [row()], memoryview(source)[64:])
    with pytest.raises((TypeError, BufferError)):
        gather(core, source, [row()], bytes(256))
    for indices in (bytearray(15), memoryview(bytearray(20))[1:17]):
        with pytest.raises(ValueError):
            gather(core, source, [row()], bytearray(256), in_order=False, indices=indices)
    with pytest.raises(ValueError):
        gather(core, source, [row(), row(key=1)], bytearray(256), indices=bytearray(16))


def test_an_image_without_a_class_or_a_record_ends_the_run(core):
    source = buffer(4)
    source[2 * SIZE + 512] = 1
    assert gather(core, source, [row()], bytearray(256)) == 2
    assert gather(core, buffer(4), [row(limit=3)], bytearray(256), in_order=False) == 3
    assert gather(core, buffer(4), [], bytearray(256)) == 0
    assert gather(core, buffer(4), [row()], bytearray(256)) == -1
    source = buffer(4)
    source[3 * SIZE + 520] = 1
    assert gather(core, source, [row()], bytearray(256)) == 3


def test_counting_finds_the_first_illegal_header(core):
    source = buffer(6)
    source[3 * SIZE + 512] = 1
    assert core.classify(source, SIZE, 6, 0, 3, 3, False) == ([(3, 5), (1, 1)], -1)
    assert core.classify(source, SIZE, 6, 0, 2, 3, False)[1] == 0
    source[4 * SIZE + 527] = 0x80
    assert core.classify(source, SIZE, 6, 0, 3, 3, False)[1] == 4
    assert core.classify(source, SIZE, 6, 1 << 63, 3, 3, False)[1] == 0


def test_an_mxcsr_that_avx_alone_states_is_a_class_of_its_own(core):
    source = buffer(3, key=4)
    source[24:28] = (0x1FA0).to_bytes(4, "little")
    source[SIZE + 24 : SIZE + 28] = (0x1F80).to_bytes(4, "little")
    source[2 * SIZE + 512] = 6
    assert core.classify(source, SIZE, 3, 0, 7, 7, True)[0] == [(4 | 1 << 63, 1), (4, 1), (6, 1)]
    assert core.classify(source, SIZE, 3, 0, 7, 7, False)[0] == [(4, 2), (6, 1)]


def test_more_classes_than_any_processor_has_are_refused(core):
    from fpstate.errors import ImageError

    count = 4097
    source = bytearray(count * 576)
    for index in range(count):
        source[index * 576 + 512 : index * 576 + 516] = index.to_bytes(4, "little")
    every = (1 << 63) - 1
    assert len(core.classify(source, 576, count - 1, 0, every, every, False)[0]) == count - 1
    with pytest.raises(ImageError):
        core.classify(source, 576, count, 0, every, every, False)


@pytest.mark.parametrize("stream", [0, 1])
def test_any_moves_do_what_slices_do(core, stream):
    """Random moves at random places, against a plain loop; what surrounds the records keeps its bytes."""
    source = random.Random(3)
    for _ in range(300):
        length = source.randrange(1, 400)
        moves, cursor = [], 0
        while cursor < length and source.random() < 0.9:
            cursor += source.randrange(0, 40)
            size = min(source.randrange(1, 120), length - cursor)
            if size > 0:
                moves.append((source.randrange(0, SIZE - size + 1), cursor, size))
                cursor += size
        images, record = bytearray(source.randbytes(4 * SIZE)), source.randbytes(length)
        for index in range(4):
            header = (images[index * SIZE + 512] & ~3 | 2).to_bytes(16, "little")
            images[index * SIZE + 512 : index * SIZE + 528] = header
        step = -(-length // 64) * 64 if source.random() < 0.5 else length + source.randrange(0, 9)
        destination = aligned(4 * step + 64)
        destination[:] = b"\xee" * len(destination)
        expected = bytearray(destination)
        offset = source.choice((0, 16, 64))
        for index in range(4):
            made = bytearray(record)
            for at, to, size in moves:
                made[to : to + size] = images[index * SIZE + at : index * SIZE + at + size]
            start = min(offset, 64) + index * step
            expected[start : start + length] = made
        result = gather(
            core, images, [row(key=2, start=offset, step=step, record=record, moves=moves)], destination,
            stream=stream,
        )  # fmt: skip
        assert result == -1
        for index in range(4):
            start = offset + index * step
            assert destination[start : start + length] == expected[start : start + length]
        assert destination[:offset] == expected[:offset]
        assert destination[offset + 4 * step :] == expected[offset + 4 * step :]


def test_other_threads_run_meanwhile(core):
    """Without the GIL: a thread counts on while images are moved."""
    count = 20000
    source, destination = buffer(count), bytearray(count * 64)
    done, seen = threading.Event(), []

    def tick() -> None:
        while not done.is_set():
            seen.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(20):
        before = len(seen)
        gather(core, source, [row(limit=count)], destination, count=count)
        if len(seen) > before:
            break
    done.set()
    thread.join()
    assert len(seen) > 0
