import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from shared.store import arena as arenas
from shared.store.arena import FOLDER, Arena, MappedArena, Ownerless, Slot

OWNER = """
import sys, time
from shared.store.arena import Arena
arena = Arena(4096, 2)
slot = arena.lease(4096)
arena.view(slot)[:5] = b"hello"
if sys.argv[1] == "idle":
    arena.give_back(slot)
print(arena.name, slot, flush=True)
time.sleep(60)
"""


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(10_000, 3)
    yield made
    made.close()


def test_slots_are_leased_once_and_again_when_given_back(arena: Arena) -> None:
    slots = [arena.lease(10_000) for _ in range(3)]
    assert None not in slots
    assert arena.lease(1) is None
    assert arena.busy == 3
    assert slots[1]
    arena.give_back(slots[1])
    again = arena.lease(10_000)
    assert again
    assert again.index == slots[1].index
    assert again.lease > slots[1].lease
    assert arena.lease(10_000) is None
    assert arena.lease(20_000) is None


def test_another_process_reads_what_the_owner_wrote(arena: Arena) -> None:
    slot = arena.lease(4)
    assert slot
    arena.view(slot)[:] = b"abcd"
    mapped = MappedArena.open(arena.name)
    assert Slot.parse(str(slot)) == slot
    assert mapped.holds(slot)
    assert bytes(mapped.view(slot)) == b"abcd"
    mapped.give_back(slot)
    assert not mapped.holds(slot)
    assert arena.busy == 0


def test_a_late_reader_neither_frees_nor_trusts_a_slot_that_was_leased_again(arena: Arena) -> None:
    late = arena.lease(4)
    assert late
    arena.give_back(late)
    new = arena.lease(4)
    assert new
    assert new.index == late.index
    mapped = MappedArena.open(arena.name)
    assert not mapped.holds(late)
    mapped.give_back(late)
    assert mapped.holds(new)
    assert arena.busy == 1


def test_memory_that_is_not_to_be_had_is_not_counted_as_free(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    first = arena.lease(1)
    assert first
    assert arena.free == 2
    with monkeypatch.context() as smaller:
        smaller.setattr(os, "posix_fallocate", full)
        assert arena.lease(1) is None
    assert arena.free == 0
    arena.give_back(first)
    assert arena.free == 1
    assert [arena.lease(1) is not None for _ in range(4)] == [True, True, True, False], "it is asked for again"
    assert arena.free == 0


def test_slots_leave_room_for_what_else_lies_there(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    first = arena.lease(1)
    assert first
    monkeypatch.setattr(arenas, "SPARED_SHARE", 1.0)
    monkeypatch.setattr(arenas, "SPARED_MOST_BYTES", sys.maxsize)
    assert arena.lease(1) is None
    assert arena.free == 0
    arena.give_back(first)
    assert arena.lease(1), "what was set aside is not given away"


def test_names_that_lead_elsewhere_are_not_opened() -> None:
    for name in ("visionmesh-../etc/passwd", "other", "visionmesh-none"):
        with pytest.raises(OSError, match=r"No such file|other|passwd"):
            MappedArena.open(name)


def test_a_full_memory_is_no_slot_rather_than_a_crash(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert arena.lease(4) is None


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_an_arena_goes_after_its_owner_was_killed(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "YOUNG_S", 0.0)
    with subprocess.Popen([sys.executable, "-c", OWNER, state], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        name, slot = owner.stdout.readline().split()
        sweeper = Ownerless(grace_s=0.2)
        assert name not in sweeper.sweep(), "its owner lives"
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    mapped = MappedArena.open(name)
    removed = sweeper.sweep()
    if state == "busy":
        assert name not in removed, "its pixels may still be wanted"
        assert bytes(mapped.view(Slot.parse(slot))[:5]) == b"hello"
        time.sleep(0.25)
        removed = sweeper.sweep()
    assert name in removed
    assert not (FOLDER / name).exists()
    assert not mapped.exists


def test_a_closing_owner_leaves_what_is_wanted(arena: Arena) -> None:
    wanted = Arena(4096, 1)
    slot = wanted.lease(4)
    assert slot
    wanted.close(leave_busy=True)
    mapped = MappedArena.open(wanted.name)
    mapped.give_back(slot)
    assert mapped.busy == 0
    wanted.path.unlink()
