"""The agent's small parts: loop, journal, lookups, doorbell slots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guest_agent import slots
from guest_agent.journal import Journal
from guest_agent.lookups import MAX_ANSWERS, Lookups
from guest_agent.loop import READ, Loop
from guest_agent.messages import FastPath
from guest_agent.records import Endpoint
from guest_agent.slots import SLOTS, Slots, eventfd_id, find_eventfd

AT = Endpoint("10.0.0.1", 80)


# --- loop ---------------------------------------------------------------------------------------------------


def test_timers_fire_in_order_and_can_be_cancelled() -> None:
    loop, fired = Loop(), []
    loop.call_later(0.02, lambda: fired.append("late"))
    loop.call_later(0.0, lambda: fired.append("soon"))
    loop.call_later(0.01, lambda: fired.append("never")).cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert fired == ["soon", "late"]
    loop.close()


def test_a_descriptor_that_was_forgotten_in_the_same_round_is_not_served() -> None:
    loop, served = Loop(), []
    pipes = [os.pipe() for _ in range(2)]

    def serve(name: int) -> None:
        served.append(name)
        for reader, _ in pipes:
            loop.forget(reader)

    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, b"x")
        loop.watch(reader, READ, lambda _, number=number: serve(number))  # type: ignore[misc]
    loop.step(1)
    assert len(served) == 1
    loop.close()
    for reader, writer in pipes:
        os.close(reader)
        os.close(writer)


# --- journal ------------------------------------------------------------------------------------------------


def test_a_journal_is_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.put("a", {"x": 1})
    journal.put("b", {"x": 2})
    journal.put("a", {"x": 3})
    journal.drop("b")
    journal.drop("never was")
    assert dict(Journal(tmp_path / "journal")) == {"a": {"x": 3}}


def test_a_damaged_journal_gives_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('["a",{"x":1}]\nnonsense\n[]\n["b",7]\n{"c":1}\n["d",{"x":2}]\n["e",{"x"')
    assert dict(Journal(path)) == {"a": {"x": 1}, "d": {"x": 2}}


def test_a_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.put("kept", {})
    for number in range(2000):
        journal.put(str(number), {})
        journal.drop(str(number))
    assert len((tmp_path / "journal").read_text().splitlines()) < 1100
    assert dict(Journal(tmp_path / "journal")) == {"kept": {}}


# --- lookups ------------------------------------------------------------------------------------------------


def test_an_answer_is_remembered_until_it_is_withdrawn() -> None:
    lookups = Lookups()
    assert lookups.find(AT) is None
    question = lookups.ask(AT)
    assert question is not None
    assert lookups.ask(AT) is None
    lookups.answer(question, FastPath.EXTERNAL, 5)
    assert lookups.find(AT) is FastPath.EXTERNAL
    lookups.withdraw(AT.address, 0, 5)
    assert lookups.find(AT) is FastPath.EXTERNAL
    lookups.withdraw("10.0.0.2", 0, 6)
    lookups.withdraw(AT.address, 81, 6)
    assert lookups.find(AT) is FastPath.EXTERNAL
    lookups.withdraw(AT.address, AT.port, 6)
    assert lookups.find(AT) is None


def test_an_answer_that_was_withdrawn_on_its_way_is_not_believed() -> None:
    lookups = Lookups()
    question = lookups.ask(AT)
    assert question is not None
    lookups.withdraw(None, 0, 7)
    lookups.answer(question, FastPath.EXTERNAL, 6)
    assert lookups.find(AT) is None
    assert lookups.ask(AT) is not None


def test_answers_nobody_asked_for_are_ignored_and_all_are_limited() -> None:
    lookups = Lookups()
    lookups.answer(99, FastPath.EXTERNAL, 1)
    for port in range(MAX_ANSWERS + 1):
        question = lookups.ask(Endpoint("10.0.0.1", port))
        assert question is not None
        lookups.answer(question, FastPath.EXTERNAL, 1)
    assert len(lookups._answers) == 1
    lookups.clear()
    assert lookups.find(Endpoint("10.0.0.1", MAX_ANSWERS)) is None


# --- slots --------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def make_bell() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def test_a_slot_keeps_its_bell_for_the_next_process(journal: Journal) -> None:
    table = Slots(journal)
    slot, bell = table.take(1)
    assert slot != 0
    assert table.take(2) != (slot, bell)
    table.give_back(slot)
    assert table.bell(slot) == bell
    assert table.take(3) == (slot, bell)
    assert table.bell(SLOTS) == table.bell(0) == -1
    table.close()


def test_more_processes_than_slots_share_them_evenly(journal: Journal) -> None:
    table = Slots(journal)
    taken = [table.take(1)[0] for _ in range(2 * (SLOTS - 1))]
    assert sorted(taken) == sorted(2 * list(range(1, SLOTS)))
    assert len({eventfd_id(table.bell(slot)) for slot in taken}) == SLOTS - 1
    table.close()


@pytest.mark.parametrize("process_told_is_right", [True, False])
def test_a_bell_is_recovered_from_a_process_that_has_it(
    journal: Journal, process_told_is_right: bool
) -> None:
    bell = make_bell()
    os.set_inheritable(bell, True)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[bell])
    try:
        number = eventfd_id(bell)
        assert number >= 0
        pid = holder.pid if process_told_is_right else 2**22 - 1
        os.close(bell)
        found = find_eventfd(pid, number)
        if found is None and os.geteuid() != 0:
            pytest.skip("this user may not take descriptors of its own processes (ptrace_scope)")
        assert found is not None
        assert eventfd_id(found) == number
        journal.put("slot 3", {"pid": pid, "bell": number})
        os.close(found)
        table = Slots(journal)
        table.recover(wanted=True)
        assert eventfd_id(table.bell(3)) == number
        table.close()
    finally:
        holder.communicate(b"\n")


def test_a_lost_bell_keeps_its_number(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "find_eventfd", lambda pid, number: None)
    journal.put("slot 1", {"pid": 1, "bell": 12345})
    table = Slots(journal)
    table.recover(wanted=True)
    assert table.bell(1) == -1
    assert table.take(1)[0] == 2
    table.close()


def test_slots_that_nobody_can_sleep_on_are_not_recovered(journal: Journal) -> None:
    journal.put("slot 1", {"pid": 1, "bell": 12345})
    Slots(journal).recover(wanted=False)
    assert dict(journal) == {}
