"""Frames of video files."""

import shutil

import pytest

from dimvl.errors import UserError
from dimvl.regions import cutting
from dimvl.regions.cutting import LOG, Spacing, cut_videos, decoded
from tests.regions.videos import number_of, write_video

pytest.importorskip("av", reason="decoding videos needs the extra video")
THREE = Spacing(3, None)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in ("one.mp4", "two.mkv", "three.avi"):
        write_video(folder / name)
    return folder


def frames_in(folder):
    return {path.name: number_of(path) for path in sorted(folder.glob("*.jpg"))}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_frame_shown_in_the_middle_of_each_part_is_taken_exactly_in_every_format(videos, tmp_path):
    report = cut_videos([videos], tmp_path / "out", THREE)
    assert (report.done, report.frames, report.skipped) == (3, 9, 0)
    wanted = {f"{name}@{time}.jpg": int(10 * float(time)) for name in ("one", "two", "three") for time in TIMES}
    assert frames_in(tmp_path / "out") == wanted


TIMES = ("00000.500", "00001.500", "00002.500")


def test_frames_per_second_begin_with_the_first_frame_whatever_its_time_is(tmp_path):
    late = write_video(tmp_path / "late.mkv", start=70)
    found = {round(time, 3): image.getpixel((16, 16))[0] for time, image in decoded(late, Spacing(None, 1.0))}
    assert list(found) == [0, 1, 2]
    assert [round((grey - 20) / 6) for grey in found.values()] == [0, 10, 20]


def test_of_a_short_video_each_frame_is_taken_once(tmp_path):
    cut_videos([write_video(tmp_path / "short.mp4", frames=2)], tmp_path / "out", Spacing(12, None))
    assert list(frames_in(tmp_path / "out").values()) == [0, 1]


def test_an_interrupted_command_goes_on_to_the_same_folder(videos, tmp_path, monkeypatch):
    cut_videos([videos], tmp_path / "whole", THREE)
    real, calls = cutting._append, []

    def stop(path, line):
        calls.append(line)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the frames of the second video are there, its line is not
        real(path, line)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cutting, "_append", stop)
        cut_videos([videos], tmp_path / "out", THREE)
    log = tmp_path / "out" / LOG
    log.write_text(log.read_text() + '{"video": "thr')  # a line that is not whole
    report = cut_videos([videos], tmp_path / "out", THREE)
    assert (report.done, report.already) == (2, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="were cut with --count 3; give the same, or another"):
        cut_videos([videos], tmp_path / "out", Spacing(4, None))


def test_a_video_that_cannot_be_decoded_is_named_and_the_others_are_cut(videos, tmp_path, caplog):
    bad = tmp_path / "bad"
    bad.mkdir()
    shutil.copy(videos / "one.mp4", bad / "good.mp4")
    whole = (videos / "three.avi").read_bytes()
    (bad / "half.avi").write_bytes(whole[: 7 * len(whole) // 10])
    (bad / "text.mp4").write_text("not a video")
    (bad / "playlist.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{videos}/one.mp4\n")
    (bad / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (bad / "empty.mkv").touch()
    report = cut_videos([bad], tmp_path / "out", THREE)
    assert (report.done, report.skipped) == (1, 5) and "ends after 0.5 of 2.1 seconds" in caplog.text
    for name in ("half.avi", "text.mp4", "playlist.mp4", "concat.mp4", "empty.mkv"):
        [line] = [line for line in caplog.messages if name in line]
        assert "it is skipped" in line and "\n" not in line
    assert set(contents(tmp_path / "out")) == {LOG, *(f"good@{time}.jpg" for time in TIMES)}


def test_frames_that_another_command_left_are_never_mixed_with_new_ones(videos, tmp_path, caplog):
    cut_videos([videos / "one.mp4"], tmp_path / "out", THREE)
    (tmp_path / "out" / LOG).unlink()
    report = cut_videos([videos / "one.mp4"], tmp_path / "out", Spacing(2, None))
    assert (
        report.skipped == 1 and "has other frames of video 'one', such as 'one@00000.500'; remove them" in caplog.text
    )
    assert len(frames_in(tmp_path / "out")) == 3
