from dimvl import progress


def test_only_work_that_takes_time_is_shown_with_its_speed(monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    report = progress._work(shown.append, every=5.0)
    for done in range(1, 4):  # quick
        report("batches validated", done, 3)
        clock[0] += 1
    assert not shown
    for done in range(1, 9):
        clock[0] += 2
        report("texts tokenised", 100 * done, 800)
    assert shown == [
        "400 of 800 texts tokenised, 50.0 texts/s, 0:00:08 left",
        "700 of 800 texts tokenised, 50.0 texts/s, 0:00:02 left",
    ]
    clock[0] += 100
    report("batches validated", 1, 3)
    assert len(shown) == 2, "each kind of work is timed on its own"
    report("batches validated", 1, 3)  # the next validation
    clock[0] += 6
    report("batches validated", 2, 3)
    assert shown[2] == "2 of 3 batches validated, 0.2 batches/s, 0:00:06 left"
