"""Unaligned reads, writes and zeroes beside aligned writes, all at once.

usage: unaligned.py URI SEED ROUNDS

Each round sends requests over three connections together and then compares
the area with a model. Unaligned requests do not overlap each other, nor do
aligned ones; where an unaligned one overlaps an aligned one either may have
come last, but both must be there. Prints the SHA-256 of the flushed area.
"""

import hashlib
import random
import sys

import nbd

BLOCK = 4096
BLOCKS = 64
AREA = BLOCK * BLOCKS


def disjoint(rng, count, longest, unit):
    """Up to count ranges (start, end) of whole units that do not overlap."""
    ranges = []
    for _ in range(count):
        start = rng.randrange(AREA // unit)
        end = min(AREA // unit, start + rng.randint(1, longest // unit))
        if all(end * unit <= s or start * unit >= e for s, e in ranges):
            ranges.append((start * unit, end * unit))
    return ranges


def wait(handles, waiting):
    """Wait for all (handle, cookie)."""
    while waiting:
        waiting = [(h, c) for h, c in waiting if not h.aio_command_completed(c)]
        for h in handles:
            if any(w is h for w, _ in waiting):
                h.poll(10)


def overlap(a, b):
    return max(a[0], b[0]), min(a[1], b[1])


def one_round(rng, handles, model):
    waiting, keep = [], []

    def send(handle, method, *args):
        keep.append(args)  # libnbd does not copy
        waiting.append((handle, getattr(handle, method)(*args)))

    aligned = {r: rng.randbytes(r[1] - r[0]) for r in disjoint(rng, 4, 8 * BLOCK, BLOCK)}
    unaligned = {r: rng.randbytes(r[1] - r[0]) for r in disjoint(rng, 12, 3 * BLOCK, 1)}
    requests = [("w", r, d) for r, d in list(aligned.items()) + list(unaligned.items())]
    for i, (_, r, d) in enumerate(requests):
        if r in unaligned and rng.random() < 0.3:
            unaligned[r] = bytes(len(d))
            requests[i] = ("z", r, unaligned[r])
    reads = [(r, nbd.Buffer(r[1] - r[0])) for r in disjoint(rng, 4, 5 * BLOCK, 1)]
    requests += [("r", r, b) for r, b in reads]
    rng.shuffle(requests)
    for kind, (start, end), data in requests:
        handle = rng.choice(handles)
        if kind == "w":
            send(handle, "aio_pwrite", nbd.Buffer.from_bytearray(bytearray(data)), start)
        elif kind == "z":
            send(handle, "aio_zero", end - start, start)
        else:
            send(handle, "aio_pread", data, start)
    wait(handles, waiting)

    got = handles[0].pread(AREA, 0)
    # What each byte may be: as it was, or as the aligned write left it ...
    base = bytearray(model)
    for (start, end), data in aligned.items():
        base[start:end] = data
    # ... or as the unaligned request did, which comes second where it is alone.
    for r, data in unaligned.items():
        for first in range(r[0] - r[0] % BLOCK, r[1], BLOCK):
            s, e = overlap(r, (first, first + BLOCK))
            if any(a[0] <= first < a[1] for a in aligned) and got[s:e] == base[s:e]:
                continue
            base[s:e] = data[s - r[0]:e - r[0]]
    if got != base:
        bad = next(i for i in range(AREA) if got[i] != base[i])
        sys.exit(f"byte {bad} is wrong; aligned {list(aligned)}, unaligned {list(unaligned)}")
    # What nobody changed was to be read as it was.
    changed = list(aligned) + list(unaligned)
    for (start, end), buffer in reads:
        data = buffer.to_bytearray()
        parts = sorted(overlap((start, end), c) for c in changed if c[0] < end and c[1] > start)
        at = start
        for s, e in parts + [(end, end)]:
            if s > at and data[at - start:s - start] != model[at:s]:
                sys.exit(f"read of [{start}, {end}) is wrong in [{at}, {s})")
            at = max(at, e)
    model[:] = got


def main():
    uri, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    handles = []
    for _ in range(3):
        handle = nbd.NBD()
        handle.connect_uri(uri)
        handles.append(handle)
    model = bytearray(AREA)
    for _ in range(rounds):
        if rng.random() < 0.7:
            # Reads have to go to the store now: that of a read-modify-write, too,
            # which leaves others the time to come between it and its write.
            handles[0].flush()
        one_round(rng, handles, model)
    handles[0].flush()
    print(hashlib.sha256(model).hexdigest())


main()
